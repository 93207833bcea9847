"""From the engine's threads to the event loop: one wake-up per engine step, one mailbox per stream.

A mailbox gathers what a stream has gained until its reader takes it, so a stream that is behind gets all of
it in one message. It also keeps messages apart: the first item leaves at once, later ones at most once per
interval, because a message costs more than a step of a small model. The more streams are open, the longer the interval.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from server.engine.request import Delta, Stream


class Mailbox:
    """What one stream has gained and its reader has not taken yet; used from the event loop only."""

    def __init__(self, interval: Callable[[], float], max_numbers: int, on_overflow: Callable[[], object]) -> None:
        self.has_overflowed = False
        self._interval = interval
        self._max_numbers = max_numbers
        self._on_overflow = on_overflow
        self._loop = asyncio.get_running_loop()
        self._news: Delta | None = None
        self._num_numbers = 0
        self._due = 0.0
        self._reader: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def put(self, delta: Delta) -> None:
        """Add what the stream has gained; past the limit nothing more is kept and `on_overflow` is called."""
        if self.has_overflowed:
            return
        self._num_numbers += _num_numbers(delta)
        if self._num_numbers > self._max_numbers:
            self.has_overflowed = True
            self._on_overflow()
            return
        if self._news is None:
            self._news = delta
        else:
            self._news.merge(delta)
        if self._reader is not None:
            self._wake_when_due()

    async def take(self) -> Delta:
        """Wait until something is there and due, and return all of it. The end of a stream is always due."""
        while self._news is None or not self._is_due():
            self._reader = self._loop.create_future()
            self._wake_when_due()
            try:
                await self._reader
            finally:
                self._reader = None
                self._stop_timer()
        news, self._news = self._news, None
        self._num_numbers = 0
        self._due = self._next_tick()
        return news

    def _next_tick(self) -> float:
        # Ticks are the same for all streams: messages that leave together cost both ends one wake-up, not one each.
        interval = self._interval()
        return (self._loop.time() // interval + 1) * interval if interval else 0.0

    def _is_due(self) -> bool:
        return self._news is not None and (self._news.is_last or self._loop.time() >= self._due)

    def _wake_when_due(self) -> None:
        if self._news is None:
            return
        if self._is_due():
            self._wake()
        elif self._timer is None:
            self._timer = self._loop.call_at(self._due, self._wake)

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _num_numbers(delta: Delta) -> int:
    """Numbers that a delta holds: ids or vector components, and log-probabilities."""
    numbers_per_item = np.size(delta.items[0]) if delta.items else 0
    return len(delta.items) * numbers_per_item + sum(1 + len(entry.top) for entry in delta.log_probabilities)


class LoopChannel:
    """The engines' way into one event loop; implements `server.engine.request.Channel`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, min_interval: float, max_messages_per_second: float) -> None:
        self._loop = loop
        self._min_interval = min_interval
        self._max_messages_per_second = max_messages_per_second
        self._mailboxes: dict[Stream, Mailbox] = {}

    def interval(self) -> float:
        """Seconds between two messages of a stream: at least the setting, and longer where many streams are open."""
        if not self._min_interval:
            return 0.0
        return max(self._min_interval, len(self._mailboxes) / self._max_messages_per_second)

    def open(self, stream: Stream, mailbox: Mailbox) -> None:
        """Deliver the stream's news to this mailbox from now on.

        Call it in the same turn of the loop as `Engine.submit`: news come in a later turn, so none is missed.
        """
        self._mailboxes[stream] = mailbox

    def close(self, stream: Stream) -> None:
        """Drop the stream's mailbox; news that still come for it are ignored."""
        self._mailboxes.pop(stream, None)

    def deliver(self, news: list[tuple[Stream, Delta]]) -> None:
        """Take one step's news of all streams, from an engine's thread."""
        try:
            self._loop.call_soon_threadsafe(self._distribute, news)
        except RuntimeError:
            # The loop is closed: the process is ending, and nobody reads any more.
            return

    def _distribute(self, news: list[tuple[Stream, Delta]]) -> None:
        for stream, delta in news:
            mailbox = self._mailboxes.get(stream)
            if mailbox is not None:
                mailbox.put(delta)
