"""Streams of the clients: leaving early, closing, many at once."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest

from statewise import (
    AsyncClient,
    Client,
    Generation,
)
from statewise_server.app import Application
from tests.statewise.client.test_client import ENDLESS, wait_until_free


def leave_by_break(stream: Any) -> None:
    for _ in stream:
        break


def leave_by_exception(stream: Any) -> None:
    next(stream)
    with pytest.raises(ZeroDivisionError), stream:
        raise ZeroDivisionError


def leave_by_close(stream: Any) -> None:
    next(stream)
    stream.close()
    assert list(stream) == []


@pytest.mark.parametrize("leave", [leave_by_break, leave_by_exception, leave_by_close])
def test_leaving_a_stream_early_frees_its_row(server: Application, leave: Callable[[Any], None]) -> None:
    """However a stream is left, the server stops making the rest."""
    with Client(server.address) as client:
        leave(client.stream("text", "a", **ENDLESS))
        gc.collect()

        wait_until_free(server)


@pytest.mark.parametrize("how", ["break", "close", "cancel"])
def test_leaving_an_async_stream_early_frees_its_row(server: Application, how: str) -> None:
    """However an asynchronous stream is left, the server stops making the rest."""

    async def run() -> None:
        async with AsyncClient(server.address) as client:
            stream = client.stream("text", "a", **ENDLESS)
            async for _ in stream:
                break
            if how == "close":
                await stream.close()
                assert [chunk async for chunk in stream] == []
            elif how == "cancel":
                task = asyncio.create_task(client.generate("text", "b", **ENDLESS))
                await asyncio.sleep(0.1)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            del stream
            gc.collect()
            await asyncio.to_thread(wait_until_free, server)

    asyncio.run(run())


def test_closing_the_client_ends_its_streams(server: Application) -> None:
    """A client that is closed leaves nothing running."""
    client = Client(server.address)
    next(client.stream("text", "a", **ENDLESS))

    client.close()

    wait_until_free(server)


def test_many_async_streams_at_once(server: Application) -> None:
    """More streams than rows, from one client, all complete; equal seeds give equal tokens."""

    async def run() -> list[Generation]:
        async with AsyncClient(server.address) as client:
            calls = [client.generate("text", "a", seed=i % 4, **ENDLESS | {"max_tokens": 50}) for i in range(40)]
            return await asyncio.gather(*calls)

    answers = asyncio.run(run())

    assert len({answer.tokens for answer in answers}) == 4
    assert {len(answer.tokens) for answer in answers} == {50}
