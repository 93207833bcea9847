"""Forecast: many paths sampled from one context, and what they say together.

The context is read once. Its state, all but its last item, is saved and loaded into a row for each path; a path reads
the last item by itself, as its first vector is drawn in that step. Paths that find no row wait, as requests do.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from statewise.errors import InvalidRequestError
from statewise.model.spec import MixtureHead
from statewise.rules.sampling import GREEDY, SamplingParams
from statewise.v1 import generation_pb2
from statewise.v1 import prediction_pb2 as pb
from statewise_server.engine.request import Delta, GenerationRequest
from statewise_server.runtime.state.pool import SavedRow
from statewise_server.services.v1.answers import info_of
from statewise_server.services.v1.paths import Paths
from statewise_server.services.v1.reading import read_deadline, read_vectors, read_version
from statewise_server.services.v1.requests import check_prompt_length

if TYPE_CHECKING:
    from statewise_server.engine.generation.engine import Engine
    from statewise_server.repository.repository import Repository

Array = NDArray[Any]

DEFAULT_NUM_PATHS = 100
DEFAULT_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MAX_QUANTILES = 100


@dataclass(frozen=True, slots=True)
class ForecastLimits:
    """What one forecast may ask for."""

    max_paths: int
    max_numbers: int
    """Of all paths: paths x horizon x features."""


@dataclass(frozen=True, slots=True)
class _Task:
    """A request, checked."""

    context: NDArray[np.float32]
    horizon: int
    num_paths: int
    quantiles: tuple[float, ...]
    temperature: float
    seed: int
    deadline: float | None

    def leader(self) -> GenerationRequest:
        """Reads what all paths have in common; the vector that it makes itself is of no use."""
        return GenerationRequest(self.context[:-1], GREEDY, max_tokens=1, deadline=self.deadline, keeps_state=True)

    def paths(self, start: SavedRow | None) -> Iterator[GenerationRequest]:
        """Each with a seed that depends on the request's and its place alone."""
        for place in range(self.num_paths):
            seed = int(np.random.SeedSequence((self.seed, place)).generate_state(1, np.uint64)[0])
            sampling = SamplingParams(temperature=self.temperature, seed=seed)
            yield GenerationRequest(self.context, sampling, self.horizon, deadline=self.deadline, start=start)


async def forecast(
    request: pb.ForecastRequest, repository: Repository, limits: ForecastLimits, seconds_left: float | None
) -> pb.ForecastResponse:
    """Answer a request. Raises InvalidRequestError, naming the field, and what engine and repository raise."""
    engine = repository.get(request.model, read_version(request.version))
    task = _read(request, engine, limits, seconds_left)
    # Twice the rows, so that the next paths are there when a row becomes free, and others get theirs soon too.
    paths = Paths(engine, 2 * engine.memory.max_rows)
    start = await _state_of_context(task, paths)
    drawn = np.empty((task.num_paths, task.horizon, task.context.shape[1]), np.float32)
    num_drawn = [0] * task.num_paths

    def take(place: int, delta: Delta) -> None:
        end = num_drawn[place] + len(delta.items)
        drawn[place, num_drawn[place] : end] = delta.items
        num_drawn[place] = end

    await paths.run(task.paths(start), take)
    # A large one takes a while, in which the event loop must go on.
    return await asyncio.to_thread(_response, request, task, drawn, engine)


async def _state_of_context(task: _Task, paths: Paths) -> SavedRow | None:
    """The state after all of the context but its last item; None where there is nothing before that."""
    if len(task.context) == 1:
        return None
    states: list[SavedRow] = []

    def take(_: int, delta: Delta) -> None:
        if delta.state is not None:
            states.append(delta.state)

    await paths.run([task.leader()], take)
    return states[0]


def _read(request: pb.ForecastRequest, engine: Engine, limits: ForecastLimits, seconds_left: float | None) -> _Task:
    deadline = read_deadline(seconds_left)
    head = engine.manifest.model.head
    if not isinstance(head, MixtureHead):
        raise InvalidRequestError(
            f"{engine.manifest.name!r} has a {head.kind} head, which gives no distribution of series; train with "
            "`head: mixture`, or continue the series with Generate",
            field="model",
        )
    num_paths = request.num_paths if request.HasField("num_paths") else DEFAULT_NUM_PATHS
    _check_size(request.horizon, num_paths, head.features, engine, limits)
    temperature = request.temperature if request.HasField("temperature") else 1.0
    if not 0 <= temperature <= 100:
        raise InvalidRequestError(f"must lie in [0, 100], got {temperature:g}", field="temperature")
    return _Task(
        context=_context(request, head.features, engine),
        horizon=request.horizon,
        num_paths=num_paths,
        quantiles=_quantiles(tuple(request.quantiles)),
        temperature=temperature,
        seed=request.seed if request.HasField("seed") else secrets.randbits(32),
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


def _context(request: pb.ForecastRequest, features: int, engine: Engine) -> NDArray[np.float32]:
    context = read_vectors(request.context, features, engine.manifest, "context", partial(check_prompt_length, engine))
    if not np.isfinite(context).all():
        raise InvalidRequestError("holds NaN or infinity", field="context.values")
    most = engine.limits.max_positions
    if most is not None and len(context) + request.horizon > most:
        raise InvalidRequestError(
            f"{request.horizon} after a context of {len(context)} items exceed the {most} positions of model "
            f"{engine.manifest.name!r}",
            field="horizon",
        )
    return context


def _quantiles(given: tuple[float, ...]) -> tuple[float, ...]:
    if len(given) > MAX_QUANTILES:
        raise InvalidRequestError(f"at most {MAX_QUANTILES}, got {len(given)}", field="quantiles")
    for place, quantile in enumerate(given):
        if not 0 < quantile < 1:
            raise InvalidRequestError(f"must lie in (0, 1), got {quantile:g}", field=f"quantiles[{place}]")
        if place and quantile <= given[place - 1]:
            raise InvalidRequestError(
                f"must ascend, got {quantile:g} after {given[place - 1]:g}", field=f"quantiles[{place}]"
            )
    return given or DEFAULT_QUANTILES


def _response(request: pb.ForecastRequest, task: _Task, drawn: Array, engine: Engine) -> pb.ForecastResponse:
    """Quantiles of each feature at each item by itself, interpolated linearly between paths."""
    levels = np.quantile(drawn, task.quantiles, axis=0)
    series = [
        pb.QuantileSeries(quantile=quantile, values=_vectors(values))
        for quantile, values in zip(task.quantiles, levels, strict=True)
    ]
    paths = map(_vectors, drawn) if request.return_paths else ()
    mean = _vectors(drawn.mean(axis=0, dtype=np.float64))
    return pb.ForecastResponse(quantiles=series, mean=mean, paths=paths, info=info_of(engine), seed=task.seed)


def _vectors(values: Array) -> generation_pb2.VectorSequence:
    return generation_pb2.VectorSequence(features=values.shape[1], values=values.ravel().tolist())
