"""statewise.v1.GenerationService: requests in, streams out; the engine decides what runs, and when."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from statewise.errors import NotFoundError, OverloadedError
from statewise.v1 import generation_pb2 as pb
from statewise.v1.generation_pb2_grpc import GenerationServiceServicer
from statewise_server.local.async_model import AsyncGenerator
from statewise_server.local.channel import LoopChannel, Mailbox
from statewise_server.local.generating import Progress
from statewise_server.local.reading import deadline_after
from statewise_server.metrics import ServerMetrics
from statewise_server.services.v1 import requests
from statewise_server.services.v1.responses import generate_response, model_of

if TYPE_CHECKING:
    from statewise_server.engine.generation.engine import Engine
    from statewise_server.engine.request import Delta, GenerationRequest, Stream
    from statewise_server.repository.repository import Repository

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["GenerationService"].full_name


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Limits on streams and their messages."""

    min_interval: float
    """Least seconds between two messages of a stream after its first; 0 sends one for every step."""
    max_messages_per_second: float
    """Over all streams, beside first and last messages; the interval grows with the number of streams."""
    max_buffered_numbers: int
    """Ids, vector components and log-probabilities that may wait for a slow reader before it is cut off."""
    max_streams: int
    """Generate calls at once, the waiting ones included."""


class GenerationService(GenerationServiceServicer):
    """Serves every model of a repository."""

    def __init__(self, repository: Repository, limits: StreamLimits, metrics: ServerMetrics) -> None:
        self._repository = repository
        self._limits = limits
        self._metrics = metrics
        self._num_streams = 0
        self._channel = LoopChannel(asyncio.get_running_loop(), limits.min_interval, limits.max_messages_per_second)

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> None:  # noqa: N802 - the rpc's name
        """Run one generation and stream it. Whatever ends the call, its row is free before the next step."""
        arrived = time.monotonic()
        with self._one_stream():
            deadline = deadline_after(context.time_remaining())
            model = AsyncGenerator(self._repository.get(request.model, requests.read_version(request.version)))
            mailbox = self._mailbox()
            try:
                with ExitStack() as running:
                    with requests.generate_fields(request):
                        generation = await self._read(request, model, deadline)
                        stream = running.enter_context(model.running(generation, self._channel, mailbox))
                    await self._send(mailbox, _Messages(model.engine, stream, arrived), context)
            except asyncio.CancelledError:
                if not mailbox.has_overflowed:
                    raise
                raise OverloadedError("the stream was read too slowly, and its buffer is full") from None

    async def _read(
        self, request: pb.GenerateRequest, model: AsyncGenerator, deadline: float | None
    ) -> GenerationRequest:
        source, options = requests.source_from(request), requests.generate_options(request)
        return await model.read(requests.prompt_from(request), source, options, deadline)

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:  # noqa: N802
        """Describe one model, also a refused one."""
        version = requests.read_version(request.version)
        entries = [entry for entry in self._repository.entries() if entry.name == request.model]
        found = [entry for entry in entries if version in (0, entry.version)]
        if not found:
            # The repository words the error, with the names that it knows.
            self._repository.get(request.model, version)
            raise NotFoundError(f"model {request.model!r} was unloaded just now")
        newest = max(found, key=lambda entry: (entry.state == "ready", entry.version))
        return pb.GetModelResponse(model=model_of(newest))

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:  # noqa: N802
        """Describe every model of the repository."""
        return pb.ListModelsResponse(models=map(model_of, self._repository.entries()))

    @contextmanager
    def _one_stream(self) -> Iterator[None]:
        # Counted here, not by grpc.aio: its maximum_concurrent_rpcs has miscounted.
        if self._num_streams >= self._limits.max_streams:
            raise OverloadedError(f"{self._num_streams} streams are open already; retry later")
        self._num_streams += 1
        try:
            yield
        finally:
            self._num_streams -= 1

    def _mailbox(self) -> Mailbox:
        task = asyncio.current_task()
        assert task is not None
        # A reader that is too slow is stuck in a write, which only a cancellation ends.
        return Mailbox(self._limits.max_buffered_numbers, task.cancel)

    async def _send(self, mailbox: Mailbox, messages: _Messages, context: Any) -> None:
        is_last = False
        while not is_last:
            delta = await mailbox.take()
            is_last = delta.is_last
            if delta.items or delta.error is None:
                await context.write(messages.add(delta))
                self._record(messages)
            if delta.error is not None:
                raise delta.error

    def _record(self, messages: _Messages) -> None:
        seconds = messages.seconds_since_last()
        if messages.num_sent == 1:
            self._metrics.first_items(messages.model, messages.num_new, seconds)
        else:
            self._metrics.later_items(messages.model, messages.num_new, seconds)


class _Messages:
    """The messages of one stream, counted and timed for the metrics."""

    def __init__(self, engine: Engine, stream: Stream, arrived: float) -> None:
        self.model = engine.manifest.name
        self.num_sent = 0
        self.num_new = 0
        """Items of the last message."""
        self._progress = Progress(engine, stream)
        self._last = arrived

    def add(self, delta: Delta) -> pb.GenerateResponse:
        """Return the next message."""
        self.num_sent += 1
        self.num_new = len(delta.items)
        return generate_response(self._progress.add(delta))

    def seconds_since_last(self) -> float:
        """Return the seconds since the message before (the request's arrival, at first)."""
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        return seconds
