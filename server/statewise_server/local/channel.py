"""From the engine's threads to the event loop: one mailbox per stream, and one clock for all of them.

A message costs as much as a step of a small model, and on a machine whose cores all compute it costs that much of a
step of a large one too. So messages are few: a stream's first items and its end leave at once, all else at the next
tick, and until then the loop sleeps. A stream that is behind gets all that has gathered in one message. The more
streams are open, the longer the interval between ticks.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from statewise_server.engine.request import Delta, Stream

Events = list[tuple["Stream", "Delta"]]


class Mailbox:
    """Events of one stream that its reader has not taken yet; used from the event loop only."""

    def __init__(self, max_numbers: int, on_overflow: Callable[[], object]) -> None:
        self.has_overflowed = False
        self.has_begun = False
        """Whether anything has been released."""
        self._max_numbers = max_numbers
        self._on_overflow = on_overflow
        self._gathered: Delta | None = None
        self._num_numbers = 0
        self._is_released = False
        self._reader: asyncio.Future[None] | None = None

    def put(self, delta: Delta) -> None:
        """Add what the stream has gained; past the limit nothing more is kept and `on_overflow` is called."""
        if self.has_overflowed:
            return
        self._num_numbers += _num_numbers(delta)
        if self._num_numbers > self._max_numbers:
            self.has_overflowed = True
            self._on_overflow()
            return
        if self._gathered is None:
            self._gathered = delta
        else:
            self._gathered.merge(delta)

    def release(self) -> None:
        """Let the reader take what is there, also where it comes for it later."""
        self.has_begun = True
        self._is_released = self._gathered is not None
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def take(self) -> Delta:
        """Wait until something is released, and return all that is there."""
        while self._gathered is None or not self._is_released:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        gathered, self._gathered = self._gathered, None
        self._num_numbers = 0
        self._is_released = False
        return gathered


def _num_numbers(delta: Delta) -> int:
    """Numbers that a delta holds: ids or vector components, and log-probabilities."""
    numbers_per_item = getattr(delta.items[0], "size", 1) if delta.items else 0
    return len(delta.items) * numbers_per_item + sum(1 + len(entry.top) for entry in delta.log_probabilities)


class LoopChannel:
    """The engines' way into one event loop; implements `statewise_server.engine.request.Channel`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, min_interval: float, max_messages_per_second: float) -> None:
        self._loop = loop
        self._min_interval = min_interval
        self._max_messages_per_second = max_messages_per_second
        self._mailboxes: dict[Stream, Mailbox] = {}
        self._held: set[Mailbox] = set()
        """Mailboxes with events that wait for the next tick."""
        self._timer: asyncio.TimerHandle | None = None
        self._lock = threading.Lock()
        self._arrived: Events = []
        """Events that the loop has not looked at; this and the next are guarded by the lock."""
        self._is_expected = False
        """Whether the loop will look at it, at the next tick or before."""

    def interval(self) -> float:
        """Seconds between two messages of a stream: at least the setting, and longer where many streams are open."""
        if not self._min_interval:
            return 0.0
        return max(self._min_interval, len(self._mailboxes) / self._max_messages_per_second)

    def open(self, stream: Stream, mailbox: Mailbox) -> None:
        """Deliver the stream's events to this mailbox from now on.

        Call it in the same turn of the loop as `Engine.submit`: events come in a later turn, so none is missed.
        """
        self._mailboxes[stream] = mailbox

    def close(self, stream: Stream) -> None:
        """Drop the stream's mailbox; events that still come for it are ignored."""
        mailbox = self._mailboxes.pop(stream, None)
        if mailbox is not None:
            self._held.discard(mailbox)

    def deliver(self, events: Events) -> None:
        """Take one step's events of all streams, from an engine's thread."""
        with self._lock:
            self._arrived += events
            wakes = not self._is_expected or any(self._is_urgent(*entry) for entry in events)
            self._is_expected = True
        if not wakes:
            return
        try:
            self._loop.call_soon_threadsafe(self._look)
        except RuntimeError:
            # The loop is closed: the process is ending, and nobody reads any more.
            return

    def _is_urgent(self, stream: Stream, delta: Delta) -> bool:
        mailbox = self._mailboxes.get(stream)
        return delta.is_last or mailbox is None or not mailbox.has_begun

    def _look(self) -> None:
        """An engine has woken the loop: what is urgent leaves, and all else too where no tick is awaited."""
        with self._lock:
            arrived, self._arrived = self._arrived, []
            # Without ticks, every step wakes.
            self._is_expected = bool(self._min_interval)
        self._distribute(arrived)
        if self._timer is None:
            self._release_held()
            self._await_tick()

    def _tick(self) -> None:
        """Release all gathered events; if there are none, no tick follows, and the next events wake the loop."""
        with self._lock:
            arrived, self._arrived = self._arrived, []
            self._is_expected = bool(arrived or self._held)
            goes_on = self._is_expected
        self._distribute(arrived)
        self._release_held()
        self._timer = None
        if goes_on:
            self._await_tick()

    def _await_tick(self) -> None:
        # One tick for all streams: messages that leave together cost both ends one wake-up, not one each.
        if interval := self.interval():
            due = (self._loop.time() // interval + 1) * interval
            self._timer = self._loop.call_at(due, self._tick)

    def _distribute(self, events: Events) -> None:
        for stream, delta in events:
            mailbox = self._mailboxes.get(stream)
            if mailbox is None:
                continue
            mailbox.put(delta)
            if delta.is_last or not mailbox.has_begun:
                self._held.discard(mailbox)
                mailbox.release()
            else:
                self._held.add(mailbox)

    def _release_held(self) -> None:
        for mailbox in self._held:
            mailbox.release()
        self._held.clear()
