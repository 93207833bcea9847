"""Forecasts: arguments to a request, the answer to arrays; without a transport."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from statewise.client.core import set_field, set_vectors, vectors_from
from statewise.client.frames import continued_index, feature_names
from statewise.client.items import series_of
from statewise.client.options import ForecastOptions, check_known
from statewise.client.values import Forecast, PredictionInfo
from statewise.errors import InternalError
from statewise.v1 import prediction_pb2 as pb


def forecast_request(model: str, context: ArrayLike, horizon: int, options: ForecastOptions) -> pb.ForecastRequest:
    """Build the request; context `[time, features]`, or `[time]` of one feature.

    Raises InvalidRequestError for what a message cannot hold.
    """
    check_known(options, ForecastOptions)
    request = pb.ForecastRequest()
    set_vectors(request.context, series_of(context), "context")
    given = {"model": model, "horizon": horizon} | {name: value for name, value in options.items() if name != "timeout"}
    for name, value in given.items():
        if value is not None:
            set_field(request, name, list(value) if name == "quantiles" else value)  # type: ignore[call-overload]
    return request


def forecast_from(response: pb.ForecastResponse, context: Any) -> Forecast:
    """Read the answer; names and index go on from the context's. Raises InternalError where it has no quantiles."""
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
        features=feature_names(context),
        index=continued_index(context, len(vectors_from(response.mean))),
    )
