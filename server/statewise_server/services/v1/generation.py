"""statewise.v1.GenerationService: requests in, streams out. What runs, and when, is the engine's affair."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from statewise.errors import NotFoundError, OverloadedError
from statewise.v1 import generation_pb2 as pb
from statewise.v1.generation_pb2_grpc import GenerationServiceServicer
from statewise_server.metrics import ServerMetrics
from statewise_server.services.v1.channel import LoopChannel, Mailbox
from statewise_server.services.v1.reading import read_version
from statewise_server.services.v1.requests import read_request
from statewise_server.services.v1.responses import model_of, response_of

if TYPE_CHECKING:
    from statewise_server.engine.generation.engine import Engine
    from statewise_server.engine.request import Delta, Stream
    from statewise_server.repository.repository import Repository

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["GenerationService"].full_name


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """How streams reach their readers."""

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
            engine = self._repository.get(request.model, read_version(request.version))
            generation = await read_request(request, engine, context.time_remaining())
            mailbox = self._mailbox()
            stream = engine.submit(generation, self._channel)
            try:
                self._channel.open(stream, mailbox)
                await self._send(mailbox, _Progress(engine, stream, arrived), context)
            except asyncio.CancelledError:
                if not mailbox.has_overflowed:
                    raise
                raise OverloadedError("the stream was read too slowly, and its buffer is full") from None
            finally:
                engine.cancel(stream)
                self._channel.close(stream)

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:  # noqa: N802
        """Describe one model, also a refused one."""
        version = read_version(request.version)
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

    async def _send(self, mailbox: Mailbox, progress: _Progress, context: Any) -> None:
        is_last = False
        while not is_last:
            news = await mailbox.take()
            is_last = news.is_last
            if news.items or news.error is None:
                await context.write(progress.add(news))
                self._record(progress)
            if news.error is not None:
                raise news.error

    def _record(self, progress: _Progress) -> None:
        seconds = progress.seconds_since_last()
        name = progress.engine.manifest.name
        if progress.num_messages == 1:
            self._metrics.first_items(name, progress.num_new, seconds)
        else:
            self._metrics.later_items(name, progress.num_new, seconds)


class _Progress:
    """How far one stream's answer has come."""

    def __init__(self, engine: Engine, stream: Stream, arrived: float) -> None:
        self.engine = engine
        self.num_messages = 0
        self.num_new = 0
        self._stream = stream
        self._num_items = 0
        self._last = arrived

    def add(self, news: Delta) -> pb.GenerateResponse:
        """Return the next message: the news, and what only the first and the last message say."""
        response = response_of(news)
        self.num_new = len(news.items)
        self._num_items += self.num_new
        if not self.num_messages:
            manifest = self.engine.manifest
            response.info.model, response.info.version = manifest.name, manifest.version
            response.info.variant = self.engine.variant_name
            response.info.seed = self._stream.request.sampling.seed or 0
        if news.finish_reason is not None:
            request = self._stream.request
            response.usage.prompt_tokens = len(request.prompt)
            response.usage.source_tokens = request.num_items - len(request.prompt)
            response.usage.cached_prompt_tokens = self._stream.num_cached
            response.usage.completion_tokens = self._num_items
        self.num_messages += 1
        return response

    def seconds_since_last(self) -> float:
        """Return the seconds since the message before (the request's arrival, at first)."""
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        return seconds
