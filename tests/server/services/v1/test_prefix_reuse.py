"""Prefix reuse as clients and operators see it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from statewise.client import AsyncClient, Client, Generation
from statewise_server.app import Application
from tests.serving import running_server

PROMPT = "the same beginning, and "


@pytest.fixture(scope="module")
def server() -> Iterator[Application]:
    """Run a server that saves prompts in chunks of eight."""
    with running_server(engine={"prefill_chunk": 8}) as application:
        yield application


async def _ask(address: str, text: str) -> Generation:
    async with AsyncClient(address) as client:
        return await client.generate("text", text, max_tokens=4)


def test_clients_see_how_much_of_a_prompt_was_cached(server: Application) -> None:
    """Of the start token and 24 characters, 24 items are whole chunks; both clients tell."""
    with Client(server.address) as client:
        first = client.generate("text", PROMPT, max_tokens=4)
        second = client.generate("text", PROMPT, max_tokens=4)
        other = client.generate("text", PROMPT[:10] + "ends differently", max_tokens=4)
    third = asyncio.run(_ask(server.address, PROMPT))

    assert first.usage.prompt_tokens == 25
    assert [answer.usage.cached_prompt_tokens for answer in (first, second, other, third)] == [0, 24, 8, 24]
    assert first.tokens == second.tokens == third.tokens
