"""Requests of random shapes and fates, from concurrent clients."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import numpy as np

from statewise import AsyncClient
from statewise.errors import StatewiseError

NUM_CLIENTS = 24

Random = np.random.Generator


def random_request(rng: Random, model: str) -> dict[str, Any]:
    """Options of one request: a prompt of up to 300 items, any sampling rule, log-probabilities, stop strings."""
    options: dict[str, Any] = {
        "model": model,
        "prompt": rng.integers(2, 250, int(rng.integers(1, 300) ** rng.random())).tolist(),
        "max_tokens": int(rng.integers(1, 60)),
    }
    choices = {
        "temperature": float(rng.choice([0.0, 0.7, 1.5])),
        "top_k": int(rng.integers(1, 50)),
        "top_p": float(rng.uniform(0.5, 1.0)),
        "min_p": float(rng.uniform(0.0, 0.2)),
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.5,
        "logit_bias": {int(token): 2.0 for token in rng.integers(0, 250, 5)},
        "seed": int(rng.integers(1 << 32)),
        "logprobs": int(rng.integers(0, 6)),
        "ignore_end_token": True,
    }
    options |= {name: value for name, value in choices.items() if rng.random() < 0.25}
    if model.endswith("text"):
        options["stop"] = ["".join(map(chr, rng.integers(97, 123, 2))) for _ in range(rng.integers(0, 4))]
    return options


def spoil(rng: Random, options: dict[str, Any]) -> None:
    """Change one thing, so that the request is refused."""
    faults: list[dict[str, Any]] = [
        {"model": "nobody"},
        {"prompt": [100_000]},
        {"prompt": []},
        {"prompt": [5] * 70_000},
        {"max_tokens": 1 << 30},
        {"top_p": 7.0},
        {"logprobs": 1000},
    ]
    options |= faults[int(rng.integers(len(faults)))]


async def _one(client: AsyncClient, rng: Random, model: str) -> str:
    """Send a request that is served, refused, cancelled or too slow; returns how it ended."""
    options = random_request(rng, model)
    fate = rng.choice(["served", "refused", "cancelled", "deadline"], p=[0.6, 0.15, 0.15, 0.1])
    if fate == "refused":
        spoil(rng, options)
    if fate == "deadline":
        options["timeout"] = float(rng.uniform(0.001, 0.03))
    try:
        async with client.stream(**options) as stream:
            if fate == "cancelled" and rng.random() < 0.5:
                await asyncio.sleep(float(rng.uniform(0, 0.01)))
                return "cancelled"
            async for _ in stream:
                if fate == "cancelled":
                    return "cancelled"
    except StatewiseError as error:
        return type(error).__name__
    return "served"


async def send(client: AsyncClient, models: tuple[str, ...], count: int, seed: int) -> Counter[str]:
    """Send so many random requests, some at once; returns how they ended."""
    fates: Counter[str] = Counter()
    numbers = iter(range(count))

    async def work() -> None:
        for number in numbers:
            rng = np.random.default_rng([seed, number])
            fates[await _one(client, rng, models[number % len(models)])] += 1

    await asyncio.gather(*(work() for _ in range(NUM_CLIENTS)))
    return fates
