"""Forecasts without a wire: many paths sampled from one context, and what they say together.

The context is read once. Its state, all but its last item, is saved and loaded into a row for each path; a path reads
the last item by itself, as its first vector is drawn in that step. Paths that find no row wait, as requests do.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from statewise.client.frames import continued_index, feature_names
from statewise.client.items import Vectors, series_of
from statewise.client.options import ForecastOptions
from statewise.client.values import Forecast
from statewise.errors import InvalidRequestError
from statewise.model.spec import MixtureHead
from statewise.rules.sampling import GREEDY, SamplingParams
from statewise_server.engine.queue_channel import BulkRun
from statewise_server.engine.request import Delta, GenerationRequest
from statewise_server.local.generating import integer, single
from statewise_server.local.predicting import info_of
from statewise_server.local.reading import Reader, deadline_after
from statewise_server.runtime.state.pool import SavedRow

if TYPE_CHECKING:
    from statewise_server.engine.generation.engine import Engine

DEFAULT_NUM_PATHS = 100
DEFAULT_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MAX_QUANTILES = 100


@dataclass(frozen=True, slots=True)
class ForecastLimits:
    """Limits of one forecast; by default only memory bounds it."""

    max_paths: int = sys.maxsize
    max_numbers: int = sys.maxsize
    """Most numbers over all paths: paths x horizon x features."""


@dataclass(frozen=True, slots=True, eq=False)
class ForecastTask:
    """A forecast to make, checked."""

    context: NDArray[np.float32]
    horizon: int
    num_paths: int
    quantiles: tuple[float, ...]
    temperature: float
    seed: int
    returns_paths: bool
    deadline: float | None

    def leader(self) -> GenerationRequest | None:
        """The request that reads what all paths have in common; None where there is nothing before the last item."""
        if len(self.context) == 1:
            return None
        # The vector that it makes itself is of no use.
        return GenerationRequest(self.context[:-1], GREEDY, max_tokens=1, deadline=self.deadline, keeps_state=True)

    def paths(self, start: SavedRow | None) -> Iterator[GenerationRequest]:
        """The requests of the paths, each with a seed that depends on the task's and its place alone."""
        for place in range(self.num_paths):
            seed = int(np.random.SeedSequence((self.seed, place)).generate_state(1, np.uint64)[0])
            sampling = SamplingParams(temperature=self.temperature, seed=seed)
            yield GenerationRequest(self.context, sampling, self.horizon, deadline=self.deadline, start=start)

    def empty_paths(self) -> NDArray[np.float32]:
        """An array for the paths, `[path, horizon, features]`."""
        return np.empty((self.num_paths, self.horizon, self.context.shape[1]), np.float32)

    def result(self, drawn: NDArray[np.float32], engine: Engine) -> Forecast:
        """Sum up the paths: quantiles of each feature at each item by itself, interpolated linearly between paths."""
        return Forecast(
            levels=tuple(single(quantile, "quantiles") for quantile in self.quantiles),
            quantiles=np.quantile(drawn, self.quantiles, axis=0).astype(np.float32),
            mean=drawn.mean(axis=0, dtype=np.float64).astype(np.float32),
            paths=drawn if self.returns_paths else None,
            seed=self.seed,
            info=info_of(engine),
        )


def forecast(engine: Engine, context: Any, horizon: int, options: ForecastOptions) -> Forecast:
    """Make a forecast for a thread; names and index follow the context's. Raises InvalidRequestError by argument."""
    deadline = deadline_after(options.get("timeout"))
    task = read_forecast(engine, series_of(context), horizon, options, ForecastLimits(), deadline)
    leader, start = task.leader(), None
    if leader is not None:
        (output,) = _outputs(engine, [leader])
        start = output.state
    drawn = task.empty_paths()
    for place, output in enumerate(_outputs(engine, task.paths(start))):
        drawn[place] = output.items
    return replace(
        task.result(drawn, engine),
        features=feature_names(context),
        index=continued_index(context, task.horizon),
    )


def _outputs(engine: Engine, requests: Iterable[GenerationRequest]) -> Iterator[Delta]:
    num_rows = engine.memory.max_rows
    for _, output in BulkRun(engine, requests, 2 * num_rows, 2 * num_rows):
        if output.error is not None:
            raise output.error
        yield output


def read_forecast(
    engine: Engine,
    context: Vectors,
    horizon: Any,
    options: ForecastOptions,
    limits: ForecastLimits,
    deadline: float | None,
) -> ForecastTask:
    """Translate and check a request. Raises InvalidRequestError, naming the argument."""
    head = engine.manifest.model.head
    if not isinstance(head, MixtureHead):
        raise InvalidRequestError(
            f"{engine.manifest.name!r} has a {head.kind} head, which gives no distribution of series; train with "
            "`head: mixture`, or continue the series with Generate",
            field="model",
        )
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    horizon = integer(horizon, "horizon")
    num_paths = integer(given.get("num_paths", DEFAULT_NUM_PATHS), "num_paths")
    _check_size(horizon, num_paths, head.features, engine, limits)
    seed = integer(given.get("seed", secrets.randbits(32)), "seed")
    sampling = SamplingParams(single(given.get("temperature", 1.0), "temperature"), seed=seed)
    sampling.validate_for_vectors()
    read = Reader.of_prompts(engine).read(context, "context").items
    engine.limits.check_positions(len(read), horizon, engine.manifest.model, "horizon")
    return ForecastTask(
        context=read,
        horizon=horizon,
        num_paths=num_paths,
        quantiles=_quantiles(given.get("quantiles", ())),
        temperature=sampling.temperature,
        seed=seed,
        returns_paths=bool(given.get("return_paths", False)),
        deadline=deadline,
    )


def _check_size(horizon: int, num_paths: int, features: int, engine: Engine, limits: ForecastLimits) -> None:
    if not 1 <= horizon <= engine.limits.max_tokens:
        raise InvalidRequestError(f"must lie in [1, {engine.limits.max_tokens}], got {horizon}", field="horizon")
    if not 1 <= num_paths <= limits.max_paths:
        raise InvalidRequestError(f"must lie in [1, {limits.max_paths}], got {num_paths}", field="num_paths")
    if (total := num_paths * horizon * features) > limits.max_numbers:
        raise InvalidRequestError(
            f"{num_paths} paths of {horizon} items of {features} numbers are {total:,} numbers, and this server makes "
            f"at most {limits.max_numbers:,} in one forecast; ask for fewer paths or items",
            field="num_paths",
        )


def _quantiles(given: Sequence[Any]) -> tuple[float, ...]:
    if len(given) > MAX_QUANTILES:
        raise InvalidRequestError(f"at most {MAX_QUANTILES}, got {len(given)}", field="quantiles")
    quantiles = tuple(single(quantile, f"quantiles[{place}]") for place, quantile in enumerate(given))
    for place, quantile in enumerate(quantiles):
        if not 0 < quantile < 1:
            raise InvalidRequestError(f"must lie in (0, 1), got {quantile:g}", field=f"quantiles[{place}]")
        if place and quantile <= quantiles[place - 1]:
            raise InvalidRequestError(
                f"must ascend, got {quantile:g} after {quantiles[place - 1]:g}", field=f"quantiles[{place}]"
            )
    return quantiles or DEFAULT_QUANTILES
