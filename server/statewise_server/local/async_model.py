"""A loaded model for asyncio, on which the services of every protocol are built; its twin for threads is `model`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from statewise.bundles.manifest import OneShotGraph
from statewise.client.items import Items, Vectors
from statewise.client.options import ForecastOptions, GenerateOptions
from statewise.client.values import Forecast, Inspection, Prediction, Score
from statewise.errors import DataLossError
from statewise_server.engine.request import GenerationRequest
from statewise_server.local.forecasting import ForecastLimits, ForecastTask, read_forecast
from statewise_server.local.generating import read_generation
from statewise_server.local.paths import Paths
from statewise_server.local.predicting import (
    check_inspection_size,
    inspection_of,
    prediction_of,
    read_inputs,
    score_of,
)
from statewise_server.local.reading import Reader, ReadSequence, num_characters
from statewise_server.runtime.state.pool import SavedRow

if TYPE_CHECKING:
    from statewise_server.engine.generation.engine import Engine
    from statewise_server.engine.request import Delta, Stream
    from statewise_server.engine.whole_sequences.batcher import Answer, Batcher
    from statewise_server.engine.whole_sequences.predictor import Predictor
    from statewise_server.local.channel import LoopChannel, Mailbox

LONG_TEXT = 4096
"""Characters beyond which text is tokenized off the event loop; below, the hop costs more than the work."""

Result = TypeVar("Result")


class AsyncGenerator:
    """A model that generates and forecasts, for one event loop."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def read(
        self, prompt: Items, source: Items | None, options: GenerateOptions, deadline: float | None
    ) -> GenerationRequest:
        """Translate a request; a long text does not hold up the event loop. Raises InvalidRequestError by argument."""
        characters = num_characters([prompt, source])
        return await _off_the_loop(
            lambda: read_generation(self.engine, prompt, source, options, deadline), characters > LONG_TEXT
        )

    @contextmanager
    def running(self, request: GenerationRequest, channel: LoopChannel, mailbox: Mailbox) -> Iterator[Stream]:
        """Run a request whose events come to the mailbox. However the block ends, its row is free before the next step.

        Raises what `Engine.submit` raises.
        """
        stream = self.engine.submit(request, channel)
        try:
            channel.open(stream, mailbox)
            yield stream
        finally:
            self.engine.cancel(stream)
            channel.close(stream)

    async def forecast(
        self,
        context: Vectors,
        horizon: int,
        options: ForecastOptions,
        limits: ForecastLimits,
        deadline: float | None,
    ) -> Forecast:
        """Sample paths and sum them up. Raises InvalidRequestError by argument, and what `Engine.submit` raises."""
        task = read_forecast(self.engine, context, horizon, options, limits, deadline)
        # Twice the rows, so that the next paths are there when a row becomes free, and others get theirs soon too.
        paths = Paths(self.engine, 2 * self.engine.memory.max_rows)
        start = await _state_of_context(task, paths)
        drawn = task.empty_paths()
        num_drawn = [0] * task.num_paths

        def take(place: int, delta: Delta) -> None:
            end = num_drawn[place] + len(delta.items)
            drawn[place, num_drawn[place] : end] = delta.items
            num_drawn[place] = end

        await paths.run(task.paths(start), take)
        # A large one takes a while, in which the event loop must go on.
        return await asyncio.to_thread(task.result, drawn, self.engine)


async def _state_of_context(task: ForecastTask, paths: Paths) -> SavedRow | None:
    leader = task.leader()
    if leader is None:
        return None
    states: list[SavedRow] = []

    def take(_: int, delta: Delta) -> None:
        if delta.state is not None:
            states.append(delta.state)

    await paths.run([leader], take)
    return states[0]


class AsyncPredictor:
    """A model that reads whole sequences, for one event loop."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    async def predict(self, inputs: Sequence[Items], deadline: float | None) -> list[Prediction]:
        """Labels, tags, embeddings or values of the sequences of one request.

        Raises InvalidRequestError, naming the input, and what the batcher raises. However it ends, no sequence waits
        for a batch any more; so do the methods below.
        """
        return await self._ask("predict", inputs, deadline, prediction_of)

    async def score(self, inputs: Sequence[Items], deadline: float | None) -> list[Score]:
        """Log-probabilities of the items of one request's sequences."""
        return await self._ask("score", inputs, deadline, score_of)

    async def inspect(self, sequence: Items, deadline: float | None) -> Inspection:
        """Attention weights or gate activations at every item of a sequence."""
        batcher, reader = await self._batcher("inspect"), Reader.of_inputs(self.predictor)
        is_long = num_characters([sequence]) > LONG_TEXT
        read = await _off_the_loop(lambda: reader.read(sequence, "sequence"), is_long)
        check_inspection_size(len(read.items), batcher, "sequence")
        shown = await asyncio.wrap_future(batcher.submit(read.items, deadline))
        return await asyncio.to_thread(inspection_of, shown, read, self.predictor)

    async def _ask(
        self,
        graph: OneShotGraph,
        inputs: Sequence[Items],
        deadline: float | None,
        result_of: Callable[[Answer, ReadSequence, Predictor], Result],
    ) -> list[Result]:
        batcher = await self._batcher(graph)
        is_long = num_characters(inputs) > LONG_TEXT
        sequences = await _off_the_loop(lambda: read_inputs(inputs, self.predictor), is_long)
        answers = await _run(batcher, sequences, deadline)
        return [result_of(*pair, self.predictor) for pair in zip(answers, sequences, strict=True)]

    async def _batcher(self, graph: OneShotGraph) -> Batcher:
        """The graph's batcher, loaded at its first use, which takes a while."""
        is_loaded = graph in self.predictor.batchers
        return await _off_the_loop(lambda: self.predictor.batcher(graph), not is_loaded)


async def _run(batcher: Batcher, sequences: Sequence[ReadSequence], deadline: float | None) -> list[Answer]:
    rows = [sequence.items for sequence in sequences]
    waiting = [asyncio.wrap_future(answer) for answer in batcher.submit_all(rows, deadline)]
    # A caller that goes away cancels this, and with it what waits.
    results = await asyncio.gather(*waiting, return_exceptions=True)
    answers: list[Answer] = []
    for index, result in enumerate(results):
        if isinstance(result, DataLossError):
            raise DataLossError(f"inputs[{index}]: {result}") from result
        if isinstance(result, BaseException):
            raise result
        answers.append(result)
    return answers


async def _off_the_loop(work: Callable[[], Result], is_long: bool) -> Result:
    return await asyncio.to_thread(work) if is_long else work()
