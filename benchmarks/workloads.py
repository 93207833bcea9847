"""Workloads of the contenders: prompts, numbers of tokens, and the limit of concurrent requests."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

SEED = 20_111

WARM_UP_TOKENS = 8


@dataclass(frozen=True)
class Workload:
    """Closed queue: all requests arrive at the start, decode greedily, and have no end token."""

    name: str
    prompt_lengths: tuple[int, ...]
    output_lengths: tuple[int, ...]
    max_running: int
    seed: int = 0
    """Seed of the prompts; a different one in every round, so that no prefix cache holds them."""

    @property
    def num_outputs(self) -> int:
        """Number of tokens to generate, over all requests."""
        return sum(self.output_lengths)

    @property
    def is_uniform(self) -> bool:
        """Whether all requests are alike and run together, so that a loop without a scheduler can run them."""
        kinds = set(zip(self.prompt_lengths, self.output_lengths, strict=True))
        return len(kinds) == 1 and len(self.prompt_lengths) <= self.max_running

    def prompts(self, vocabulary_size: int) -> list[NDArray[np.int64]]:
        """Token ids of every request, the same in every process."""
        rng = np.random.default_rng((SEED, self.seed))
        return [rng.integers(0, vocabulary_size, length) for length in self.prompt_lengths]

    def warm_up(self) -> Workload:
        """Return the first requests that run together, with a few tokens each."""
        count = min(self.max_running, len(self.prompt_lengths))
        outputs = tuple(min(WARM_UP_TOKENS, length) for length in self.output_lengths[:count])
        return replace(self, prompt_lengths=self.prompt_lengths[:count], output_lengths=outputs, seed=self.seed + 1000)


def uniform(name: str, num_requests: int, prompt_length: int, num_tokens: int, max_running: int = 0) -> Workload:
    """Make equal requests; all run at once unless `max_running` is set."""
    return Workload(name, (prompt_length,) * num_requests, (num_tokens,) * num_requests, max(max_running, num_requests))


def ragged(name: str, num_requests: int, max_running: int) -> Workload:
    """Make requests with prompts of 8 to 128 tokens and outputs of 16 to 192."""
    rng = np.random.default_rng(SEED)
    prompts, outputs = rng.integers(8, 129, num_requests), rng.integers(16, 193, num_requests)
    return Workload(name, tuple(prompts.tolist()), tuple(outputs.tolist()), max_running)


TRANSFORMER_WORKLOADS = {
    workload.name: workload
    for workload in (
        uniform("W1", 1, prompt_length=32, num_tokens=128),
        uniform("W2", 16, prompt_length=32, num_tokens=128),
        ragged("W3@16", 64, max_running=16),
        ragged("W3@32", 64, max_running=32),
    )
}
