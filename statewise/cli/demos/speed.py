"""Measures the speed of a server's streams from a client."""

from __future__ import annotations

import asyncio
import statistics
import time

from statewise.client import AsyncClient

_WARM_UP = 32


async def measure(address: str, model: str, prompt: str, *, streams: int, length: int, rounds: int) -> float:
    """Return tokens per second over concurrent streams of `length` tokens: the median of some rounds.

    Each stream has its own seed; the time runs from the first request to the last answer's end.
    """
    async with AsyncClient(address, timeout=300.0) as client:

        async def one(seed: int, max_tokens: int) -> int:
            generation = await client.generate(
                model, prompt, max_tokens=max_tokens, temperature=0.8, seed=seed, ignore_end_token=True
            )
            return generation.usage.completion_tokens

        async def together(max_tokens: int) -> float:
            started = time.perf_counter()
            counts = await asyncio.gather(*(one(seed, max_tokens) for seed in range(streams)))
            return sum(counts) / (time.perf_counter() - started)

        await together(_WARM_UP)
        return statistics.median([await together(length) for _ in range(rounds)])
