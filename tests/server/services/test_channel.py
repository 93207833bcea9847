"""Mailboxes: when a stream's news leaves, and how much of it may wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine

import numpy as np
import pytest

from server.engine.request import Delta, GenerationRequest, Stream, TokenLogProbability
from server.services.channel import LoopChannel, Mailbox
from statewise.sampling import GREEDY

REQUEST = GenerationRequest(np.array([1]), GREEDY, 9)


def never() -> None:
    raise AssertionError("the mailbox overflowed")


def run(test: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), timeout=10))


def test_news_that_waits_leaves_together() -> None:
    """What came while the reader was busy is one delta, in order, with its end."""

    async def test() -> None:
        mailbox = Mailbox(lambda: 0, 100, never)
        for delta in (Delta([1], "a"), Delta([2, 3], "bc"), Delta([4], "d", finish_reason="length")):
            mailbox.put(delta)

        assert await mailbox.take() == Delta([1, 2, 3, 4], "abcd", finish_reason="length")

    run(test)


def test_first_item_leaves_at_once_and_later_ones_at_the_next_tick() -> None:
    """The second message waits for a multiple of the interval and gathers what comes meanwhile."""

    async def test() -> None:
        clock = asyncio.get_running_loop().time
        mailbox = Mailbox(lambda: 0.1, 100, never)
        tick = (clock() // 0.1 + 1) * 0.1
        await asyncio.sleep(tick - clock())
        mailbox.put(Delta([1]))
        first, first_at = await mailbox.take(), clock() - tick
        for token in range(2, 6):
            mailbox.put(Delta([token]))
            await asyncio.sleep(0.005)
        second, second_at = await mailbox.take(), clock() - tick

        assert (first.items, second.items) == ([1], [2, 3, 4, 5])
        assert first_at < 0.05
        assert 0.1 <= second_at + 1e-6 < 0.2

    run(test)


def test_interval_grows_with_the_number_of_streams() -> None:
    """Each stream gets fewer messages the more are open; a minimum of 0 turns intervals off."""

    async def test() -> None:
        loop = asyncio.get_running_loop()
        channel = LoopChannel(loop, 0.015, 1000.0)
        alone = channel.interval()
        for number in range(60):
            channel.open(Stream(REQUEST, channel), Mailbox(channel.interval, 100, never))
            assert number >= 15 or channel.interval() == alone

        assert (alone, channel.interval()) == (0.015, 0.06)
        assert LoopChannel(loop, 0.0, 1000.0).interval() == 0.0

    run(test)


@pytest.mark.parametrize("end", [Delta([2], finish_reason="stop"), Delta(error=ValueError())])
def test_end_of_a_stream_does_not_wait_for_the_interval(end: Delta) -> None:
    """The last delta is due at once, also while the reader waits for the interval to pass."""

    async def test() -> None:
        mailbox = Mailbox(lambda: 60, 100, never)
        mailbox.put(Delta([1]))
        await mailbox.take()
        mailbox.put(Delta([7]))
        reader = asyncio.create_task(mailbox.take())
        await asyncio.sleep(0.01)

        mailbox.put(end)

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
        mailbox = Mailbox(lambda: 0, 9, lambda: calls.append(1))
        mailbox.put(delta)
        assert not mailbox.has_overflowed

        mailbox.put(delta)
        mailbox.put(delta)

        assert (mailbox.has_overflowed, calls) == (True, [1])
        assert len((await mailbox.take()).items) == len(delta.items)

    run(test)


def test_reading_makes_room() -> None:
    """The limit holds for what waits, not for the stream as a whole."""

    async def test() -> None:
        mailbox = Mailbox(lambda: 0, 9, never)
        for _ in range(10):
            mailbox.put(Delta([1] * 5))
            assert len((await mailbox.take()).items) == 5

    run(test)


def test_one_delivery_wakes_the_loop_once() -> None:
    """News of many streams, delivered from another thread, reach their mailboxes in one turn of the loop."""

    async def test() -> None:
        loop = asyncio.get_running_loop()
        channel = LoopChannel(loop, 0.01, 1000.0)
        request = GenerationRequest(np.array([1]), GREEDY, max_tokens=1)
        streams = [Stream(request, channel) for _ in range(3)]
        mailboxes = [Mailbox(lambda: 0, 100, never) for _ in streams]
        for stream, mailbox in zip(streams, mailboxes, strict=True):
            channel.open(stream, mailbox)
        channel.close(streams[2])
        calls = []
        call_soon_threadsafe = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *arguments: calls.append(call_soon_threadsafe(*arguments))
        news = [(stream, Delta([number])) for number, stream in enumerate(streams)]

        thread = threading.Thread(target=channel.deliver, args=(news,))
        thread.start()
        taken = [(await mailbox.take()).items for mailbox in mailboxes[:2]]
        thread.join()

        assert taken == [[0], [1]]
        assert len(calls) == 1

    run(test)


def test_delivery_to_a_closed_loop_is_ignored() -> None:
    """An engine that still runs while the process ends does not fail for it."""
    loop = asyncio.new_event_loop()
    channel = LoopChannel(loop, 0.01, 1000.0)
    loop.close()

    channel.deliver([])
