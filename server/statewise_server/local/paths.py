"""Many sequences of one request: submitted to an engine a few at a time, waited for together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from statewise.errors import OverloadedError

if TYPE_CHECKING:
    from statewise_server.engine.generation.engine import Engine
    from statewise_server.engine.request import Delta, GenerationRequest, Stream

Events = list[tuple["Stream", "Delta"]]


class Paths:
    """Runs sequences whose events one coroutine takes; implements `statewise_server.engine.request.Channel`."""

    def __init__(self, engine: Engine, num_at_once: int) -> None:
        self._engine = engine
        self._num_at_once = num_at_once
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Events] = asyncio.Queue()
        self._open: dict[Stream, int] = {}

    def deliver(self, events: Events) -> None:
        """Take one step's events, from the engine's thread."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, events)
        except RuntimeError:
            # The loop is closed: the process is ending, and nobody waits any more.
            return

    async def run(self, requests: Iterable[GenerationRequest], take: Callable[[int, Delta], None]) -> None:
        """Run every request; `take` gets what each of them, by its place, has gained.

        Raises the first error of any of them. However it ends, all rows are free before the next step.
        """
        waiting = deque(enumerate(requests))
        try:
            while waiting or self._open:
                self._submit(waiting)
                for stream, delta in await self._events.get():
                    if delta.error is not None:
                        raise delta.error
                    take(self._open[stream], delta)
                    if delta.is_last:
                        del self._open[stream]
        finally:
            for stream in self._open:
                self._engine.cancel(stream)

    def _submit(self, waiting: deque[tuple[int, GenerationRequest]]) -> None:
        while waiting and len(self._open) < self._num_at_once:
            place, request = waiting[0]
            try:
                self._open[self._engine.submit(request, self)] = place
            except OverloadedError:
                # Others fill the queue: what runs already leaves room when it ends.
                if not self._open:
                    raise
                return
            waiting.popleft()
