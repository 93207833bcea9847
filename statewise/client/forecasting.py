"""Forecasts: arguments to a request, the answer to arrays; without a transport."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike

from statewise.client.core import set_field, vectors_from
from statewise.client.values import Forecast, PredictionInfo
from statewise.errors import InternalError, InvalidRequestError
from statewise.v1 import prediction_pb2 as pb


class ForecastOptions(TypedDict, total=False):
    """How to forecast. What is absent or None is the server's choice."""

    version: int
    """Version of the model; by default the newest that is ready."""
    num_paths: int | None
    """Paths that are sampled; by default 100."""
    quantiles: Sequence[float] | None
    """In (0, 1), ascending; by default 0.05, 0.25, 0.5, 0.75, 0.95."""
    temperature: float | None
    """Above 1 the paths spread further than the model says, below 1 less; by default 1."""
    seed: int | None
    """The same seed gives the same paths; by default the server picks one and returns it."""
    return_paths: bool
    """Whether the paths come with the answer."""
    timeout: float | None
    """Seconds until the answer must be there; by default the client's."""


def forecast_request(model: str, context: ArrayLike, horizon: int, options: ForecastOptions) -> pb.ForecastRequest:
    """Build the request; context `[time, features]`, or `[time]` of one feature.

    Raises InvalidRequestError for what a message cannot hold.
    """
    unknown = set(options) - set(ForecastOptions.__annotations__)
    if unknown:
        raise TypeError(f"unknown options: {', '.join(sorted(unknown))}")
    items = np.asarray(context)
    items = items[:, None] if items.ndim == 1 else items
    if items.ndim != 2 or items.dtype.kind not in "fiu":
        raise InvalidRequestError(
            f"must be numbers [time, features] or [time], got {items.dtype} {list(items.shape)}", field="context"
        )
    request = pb.ForecastRequest()
    request.context.features = items.shape[1]
    set_field(request.context, "values", items.astype(np.float32).reshape(-1).tolist())
    given = {"model": model, "horizon": horizon} | {name: value for name, value in options.items() if name != "timeout"}
    for name, value in given.items():
        if value is not None:
            set_field(request, name, list(value) if name == "quantiles" else value)  # type: ignore[call-overload]
    return request


def forecast_from(response: pb.ForecastResponse) -> Forecast:
    """Read the answer. Raises InternalError where it has no quantiles."""
    if not response.quantiles:
        raise InternalError("the server's answer has no quantiles; client and server may be of different versions")
    info = response.info
    return Forecast(
        levels=tuple(series.quantile for series in response.quantiles),
        quantiles=np.stack([vectors_from(series.values) for series in response.quantiles]),
        mean=vectors_from(response.mean),
        paths=np.stack([vectors_from(path) for path in response.paths]) if response.paths else None,
        seed=response.seed,
        info=PredictionInfo(info.model, info.version, info.variant),
    )
