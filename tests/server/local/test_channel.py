"""Mailboxes: when a stream's events leave, and how much may wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from statewise.rules.sampling import GREEDY
from statewise_server.engine.request import Delta, GenerationRequest, Stream, TokenLogProbability
from statewise_server.local.channel import LoopChannel, Mailbox

REQUEST = GenerationRequest(np.array([1]), GREEDY, 9)


def never() -> None:
    raise AssertionError("the mailbox overflowed")


def run(test: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), timeout=10))


class Desk:
    """A channel with some streams open, and their mailboxes."""

    def __init__(self, interval: float, num_streams: int = 1) -> None:
        loop = asyncio.get_running_loop()
        self.channel = LoopChannel(loop, interval, 1000.0)
        self.streams = [Stream(REQUEST, self.channel) for _ in range(num_streams)]
        self.mailboxes = [Mailbox(100, never) for _ in self.streams]
        for stream, mailbox in zip(self.streams, self.mailboxes, strict=True):
            self.channel.open(stream, mailbox)
        self.num_wakes = 0
        self._call_soon_threadsafe = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = self._count_wake  # type: ignore[method-assign]

    def _count_wake(self, *arguments: Any) -> Any:
        self.num_wakes += 1
        return self._call_soon_threadsafe(*arguments)

    async def deliver(self, *deltas: Delta) -> None:
        """One step's events, from another thread: a delta for each of the first streams."""
        events = list(zip(self.streams, deltas, strict=False))
        thread = threading.Thread(target=self.channel.deliver, args=(events,))
        thread.start()
        thread.join()
        await asyncio.sleep(0)

    async def take(self, number: int = 0) -> list[Any]:
        return (await self.mailboxes[number].take()).items


def test_news_that_waits_leaves_together() -> None:
    """What came while the reader was busy is one delta, in order, with its end."""

    async def test() -> None:
        desk = Desk(60)
        for delta in (Delta([1], "a"), Delta([2, 3], "bc"), Delta([4], "d", finish_reason="length")):
            await desk.deliver(delta)

        assert await desk.mailboxes[0].take() == Delta([1, 2, 3, 4], "abcd", finish_reason="length")

    run(test)


def test_first_item_leaves_at_once_and_later_ones_at_the_next_tick() -> None:
    """The second message waits for a multiple of the interval and gathers what comes meanwhile."""

    async def test() -> None:
        clock = asyncio.get_running_loop().time
        desk = Desk(0.1)
        tick = (clock() // 0.1 + 1) * 0.1
        await asyncio.sleep(tick - clock())
        await desk.deliver(Delta([1]))
        first, first_at = await desk.take(), clock() - tick
        for token in range(2, 6):
            await desk.deliver(Delta([token]))
            await asyncio.sleep(0.005)
        second, second_at = await desk.take(), clock() - tick

        assert (first, second) == ([1], [2, 3, 4, 5])
        assert first_at < 0.05
        assert 0.1 <= second_at + 1e-6 < 0.2

    run(test)


def test_until_the_next_tick_the_loop_is_not_woken() -> None:
    """Steps between two ticks cost the event loop nothing."""

    async def test() -> None:
        desk = Desk(0.2, num_streams=2)
        await desk.deliver(Delta([1]), Delta([1]))
        for token in range(2, 10):
            await desk.deliver(Delta([token]), Delta([token]))

        assert desk.num_wakes == 1
        assert [await desk.take(0), await desk.take(1)] == [[1], [1]]
        assert [await desk.take(0), await desk.take(1)] == [list(range(2, 10))] * 2

    run(test)


def test_steps_longer_than_the_interval_leave_at_once() -> None:
    """After a tick with nothing to send, the next step's events do not wait for another."""

    async def test() -> None:
        desk = Desk(0.02)
        await desk.deliver(Delta([1]))
        await desk.take()
        for token in range(2, 5):
            await asyncio.sleep(0.05)
            await desk.deliver(Delta([token]))

            assert await asyncio.wait_for(desk.take(), 0.01) == [token]

    run(test)


def test_end_of_one_stream_does_not_hurry_the_others() -> None:
    """Of the events of one step only what is urgent leaves before the tick."""

    async def test() -> None:
        desk = Desk(60, num_streams=2)
        await desk.deliver(Delta([1]), Delta([1]))
        assert [await desk.take(0), await desk.take(1)] == [[1], [1]]
        waiting = asyncio.create_task(desk.take(1))

        await desk.deliver(Delta([2], finish_reason="stop"), Delta([2]))

        assert await desk.take(0) == [2]
        assert not waiting.done()
        waiting.cancel()

    run(test)


def test_without_an_interval_every_step_is_sent() -> None:
    """A minimum of 0 turns ticks off."""

    async def test() -> None:
        desk = Desk(0)
        for token in range(5):
            await desk.deliver(Delta([token]))

            assert await desk.take() == [token]

    run(test)


def test_interval_grows_with_the_number_of_streams() -> None:
    """Each stream gets fewer messages the more are open."""

    async def test() -> None:
        loop = asyncio.get_running_loop()
        channel = LoopChannel(loop, 0.015, 1000.0)
        alone = channel.interval()
        for number in range(60):
            channel.open(Stream(REQUEST, channel), Mailbox(100, never))
            assert number >= 15 or channel.interval() == alone

        assert (alone, channel.interval()) == (0.015, 0.06)

    run(test)


@pytest.mark.parametrize("end", [Delta([2], finish_reason="stop"), Delta(error=ValueError())])
def test_end_of_a_stream_does_not_wait_for_the_interval(end: Delta) -> None:
    """The last delta is due at once, also while the reader waits for the interval to pass."""

    async def test() -> None:
        desk = Desk(60)
        await desk.deliver(Delta([1]))
        await desk.take()
        await desk.deliver(Delta([7]))
        reader = asyncio.create_task(desk.mailboxes[0].take())
        await asyncio.sleep(0.01)

        await desk.deliver(end)

        assert (await reader).is_last

    run(test)


@pytest.mark.parametrize(
    "delta",
    [
        Delta([1] * 5),
        Delta([np.zeros(5, np.float32)]),
        Delta([1], log_probabilities=[TokenLogProbability(1, -1.0, ((1, -1.0), (2, -2.0), (3, -3.0)))]),
    ],
    ids=["tokens", "vectors", "log-probabilities"],
)
def test_full_mailbox_calls_for_help_once(delta: Delta) -> None:
    """Every number counts towards the limit; past it `on_overflow` is called, and nothing more is kept."""

    async def test() -> None:
        calls: list[int] = []
        mailbox = Mailbox(9, lambda: calls.append(1))
        mailbox.put(delta)
        assert not mailbox.has_overflowed

        mailbox.put(delta)
        mailbox.put(delta)

        assert (mailbox.has_overflowed, calls) == (True, [1])
        mailbox.release()
        assert len((await mailbox.take()).items) == len(delta.items)

    run(test)


def test_reading_makes_room() -> None:
    """The limit holds for what waits, not for the stream as a whole."""

    async def test() -> None:
        mailbox = Mailbox(9, never)
        for _ in range(10):
            mailbox.put(Delta([1] * 5))
            mailbox.release()
            assert len((await mailbox.take()).items) == 5

    run(test)


def test_one_delivery_wakes_the_loop_once() -> None:
    """Events of many streams reach their mailboxes in one turn of the loop; those of a closed one are dropped."""

    async def test() -> None:
        desk = Desk(0, num_streams=3)
        desk.channel.close(desk.streams[2])

        await desk.deliver(Delta([0]), Delta([1]), Delta([2]))

        assert [await desk.take(0), await desk.take(1)] == [[0], [1]]
        assert desk.num_wakes == 1

    run(test)


def test_delivery_to_a_closed_loop_is_ignored() -> None:
    """An engine that still runs while the process ends does not fail for it."""
    loop = asyncio.new_event_loop()
    channel = LoopChannel(loop, 0.01, 1000.0)
    loop.close()

    channel.deliver([])
