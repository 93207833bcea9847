"""A model in this process: text in, text out, without a server and without a port."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from statewise.bundles.manifest import Manifest
from statewise.client.core import fold
from statewise.client.items import is_lazy, is_many, items_of
from statewise.client.options import ForecastOptions, GenerateOptions, check_known
from statewise.client.values import Chunk, Generation, Prompt
from statewise.errors import InvalidRequestError, UnavailableError
from statewise_server.engine.queue_channel import BulkRun, QueueChannel
from statewise_server.engine.request import Delta, GenerationRequest, Stream
from statewise_server.local import whole_sequences
from statewise_server.local.forecasting import forecast
from statewise_server.local.generating import Progress, read_generation
from statewise_server.local.reading import deadline_after

if TYPE_CHECKING:
    from statewise_server.engine.generation.engine import Engine
    from statewise_server.engine.whole_sequences.predictor import Predictor

Result = TypeVar("Result")

FINISHED_PER_ROW = 16
"""Answers of a long job that may wait for an earlier one, for each row of the engine."""


class ChunkStream:
    """An answer as it is made: iterate over it. It starts with the first chunk; leaving it early frees its row."""

    def __init__(self, engine: Engine, read: Callable[[], GenerationRequest]) -> None:
        self._engine = engine
        self._chunks = _chunks(engine, read)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Chunk:
        return next(self._chunks)

    def close(self) -> None:
        """Cancel what is not there yet; does nothing for a stream that has ended."""
        self._chunks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Model:
    """A loaded model; safe to use from several threads.

    Every method takes one input, a list of inputs (and returns a list of results) or an iterator of inputs (and returns
    an iterator of results, in the inputs' order, with as many in work as the engine takes). A list of integers is one
    input, and so is a list of lists of floats. Each result is, bit for bit, the one that a server gives.
    """

    def __init__(self, manifest: Manifest, variant: str, engine: Engine | None, predictor: Predictor) -> None:
        self.manifest = manifest
        self.variant = variant
        self._engine = engine
        self._predictor = predictor
        self._is_closed = False

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.manifest.name

    @property
    def version(self) -> int:
        """Version of the model."""
        return self.manifest.version

    def generate(self, prompt: Any = "", **options: Unpack[GenerateOptions]) -> Any:
        """Continue prompts, and return each `Generation`; options as in `GenerateOptions`.

        With `source`, which may be many too, each source has its prompt: the one prompt, or its own of as many.
        Raises InvalidRequestError by argument, and the first error of any generation.
        """
        engine = self._generator()
        check_known(options, GenerateOptions)
        pairs, shape = _pairs(prompt, options.get("source"))
        requests = (self._read_one(engine, place, one, source, options) for place, (one, source) in enumerate(pairs))
        return shape(self._generations(engine, requests))

    def stream(self, prompt: Any = "", **options: Unpack[GenerateOptions]) -> Any:
        """Continue prompts, giving each answer as it is made, as a `ChunkStream`; options as in `GenerateOptions`."""
        engine = self._generator()
        check_known(options, GenerateOptions)
        pairs, shape = _pairs(prompt, options.get("source"))

        def open_stream(one: Prompt, source: Prompt | None) -> ChunkStream:
            return ChunkStream(engine, lambda: self._read(engine, one, source, options))

        return shape(open_stream(one, source) for one, source in pairs)

    def predict(self, inputs: Any, *, timeout: float | None = None) -> Any:
        """Return a `Prediction` of each whole sequence: labels, tags, an embedding or a value."""
        return self._ask(inputs, lambda many: whole_sequences.predictions(self._reader(), many, timeout))

    def embed(self, inputs: Any, *, timeout: float | None = None) -> Any:
        """Return the embedding of each whole sequence, float32 `[size]`."""
        return self._ask(inputs, lambda many: whole_sequences.embeddings(self._reader(), many, timeout))

    def score(self, inputs: Any, *, timeout: float | None = None) -> Any:
        """Return a `Score` of each whole sequence: how probable the model finds it, item by item."""
        return self._ask(inputs, lambda many: whole_sequences.scores(self._reader(), many, timeout))

    def inspect(self, sequence: Any, *, timeout: float | None = None) -> Any:
        """Return an `Inspection` of each sequence: what the model attends to, or how its gates stand."""
        return self._ask(sequence, lambda many: whole_sequences.inspections(self._reader(), many, timeout))

    def forecast(self, context: Any, horizon: int, **options: Unpack[ForecastOptions]) -> Any:
        """Sample how a series `[time, features]`, or `[time]` of one feature, goes on; return a `Forecast`.

        Several series are a list of arrays or tables, or an iterator.
        """
        engine = self._generator()
        check_known(options, ForecastOptions)
        self._check_version(options.get("version"))
        many, shape = _series(context)
        return shape(forecast(engine, one, horizon, options) for one in many)

    def close(self) -> None:
        """End what runs with UnavailableError, and free the model's memory."""
        self._is_closed = True
        if self._engine is not None:
            self._engine.close()
        self._predictor.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _generator(self) -> Engine:
        self._check_open()
        if self._engine is None:
            raise InvalidRequestError(f"{self.name!r} does not generate; use predict", field="model")
        return self._engine

    def _reader(self) -> Predictor:
        self._check_open()
        return self._predictor

    def _check_open(self) -> None:
        if self._is_closed:
            raise UnavailableError(f"model {self.name!r} is closed; load it again")

    def _check_version(self, version: int | None) -> None:
        if version not in (None, 0, self.version):
            raise InvalidRequestError(f"this is version {self.version}, got {version}", field="version")

    def _read_one(
        self, engine: Engine, place: int, prompt: Prompt, source: Prompt | None, options: GenerateOptions
    ) -> GenerationRequest:
        """Read one request of possibly many; an error of its prompt or source has its place."""
        try:
            return self._read(engine, prompt, source, options)
        except InvalidRequestError as error:
            name, *detail = (error.field or "").split(".")
            if not place or name not in {"prompt", "source"}:
                raise
            raise error.renamed(".".join([f"{name}[{place}]", *detail])) from error

    def _read(
        self, engine: Engine, prompt: Prompt, source: Prompt | None, options: GenerateOptions
    ) -> GenerationRequest:
        self._check_version(options.get("version"))
        read_source = None if source is None else items_of(source, "source")
        return read_generation(engine, items_of(prompt), read_source, options, deadline_after(options.get("timeout")))

    def _generations(self, engine: Engine, requests: Iterable[GenerationRequest]) -> Iterator[Generation]:
        num_rows = engine.memory.max_rows
        # Twice the rows, so that the next requests are there when a row becomes free, and other threads get theirs too.
        for stream, output in BulkRun(engine, requests, 2 * num_rows, FINISHED_PER_ROW * num_rows):
            if output.error is not None:
                raise output.error
            yield fold([Progress(engine, stream).add(output)])

    def _ask(self, inputs: Any, results_of: Callable[[Iterable[Prompt]], Iterator[Result]]) -> Any:
        many, shape = _inputs(inputs)
        self._check_open()
        return shape(results_of(many))


def _chunks(engine: Engine, read: Callable[[], GenerationRequest]) -> Generator[Chunk, None, None]:
    channel = QueueChannel()
    stream: Stream = engine.submit(read(), channel)
    progress = Progress(engine, stream)
    try:
        is_last = False
        while not is_last:
            merged = Delta()
            for _, delta in channel.receive():
                merged.merge(delta)
            is_last = merged.is_last
            if merged.items or merged.error is None:
                yield progress.add(merged)
            if merged.error is not None:
                raise merged.error
    finally:
        engine.cancel(stream)


Shape = Callable[[Iterable[Any]], Any]


def _inputs(given: Any) -> tuple[Iterable[Any], Shape]:
    """The inputs that a value holds, and how their results are returned: one, a list, or an iterator."""
    if is_lazy(given):
        return given, iter
    return (given, list) if is_many(given) else ([given], _only)


def _series(given: Any) -> tuple[Iterable[Any], Shape]:
    """Do the same as `_inputs` for series; a list of numbers or of lists is one series."""
    if isinstance(given, list | tuple) and given and not hasattr(given[0], "__array__"):
        return [given], _only
    if isinstance(given, list | tuple) and given and getattr(given[0], "ndim", 0) > 0:
        return given, list
    return (given, iter) if is_lazy(given) else ([given], _only)


def _pairs(prompt: Any, source: Any) -> tuple[Iterable[tuple[Any, Any]], Shape]:
    """Each prompt with its source; one alone goes with each of many of the other."""
    prompts, shape_of_prompts = _inputs(prompt)
    sources, shape_of_sources = ([None], _only) if source is None else _inputs(source)
    if shape_of_sources is _only:
        (one,) = sources
        return ((prompt, one) for prompt in prompts), shape_of_prompts
    if shape_of_prompts is _only:
        return ((prompt, one) for one in sources), shape_of_sources
    shape = list if shape_of_prompts is shape_of_sources is list else iter
    return zip(prompts, sources, strict=True), shape


def _only(results: Iterable[Any]) -> Any:
    (result,) = results
    return result
