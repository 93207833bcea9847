"""CTranslate2, which has no queue: batches of `max_running` requests in turn; finished rows leave."""

from __future__ import annotations

import sys
import time

import ctranslate2

from benchmarks.contenders.process import Subject, answer
from benchmarks.workloads import Workload

NUM_THREADS = 2


class Batches(Subject):
    """Batches in order of arrival."""

    def __init__(self, folder: str, vocabulary_size: str, compute_type: str) -> None:
        self._vocabulary_size = int(vocabulary_size)
        self._generator = ctranslate2.Generator(
            folder, device="cpu", compute_type=compute_type, inter_threads=1, intra_threads=NUM_THREADS
        )

    def measure(self, workload: Workload) -> float:
        """Seconds for all batches, one after the other."""
        # CTranslate2 takes tokens by name: `t17` (benchmarks.contenders.peers.roster.word).
        prompts = [[f"t{token}" for token in prompt] for prompt in workload.prompts(self._vocabulary_size)]
        started = time.perf_counter()
        for first in range(0, len(prompts), workload.max_running):
            batch = slice(first, first + workload.max_running)
            self._generate(prompts[batch], workload.output_lengths[batch])
        return time.perf_counter() - started

    def _generate(self, prompts: list[list[str]], output_lengths: tuple[int, ...]) -> None:
        # Steps count from the end of the shortest prompt; they also feed the rest of longer prompts.
        shortest = min(map(len, prompts))
        num_steps = [len(prompt) - shortest + n for prompt, n in zip(prompts, output_lengths, strict=True)]
        results = self._generator.generate_batch(
            prompts,
            beam_size=1,
            sampling_topk=1,
            max_length=max(output_lengths),
            min_length=max(output_lengths),  # no end token before it
            include_prompt_in_result=False,
            callback=lambda result: result.step + 1 >= num_steps[result.batch_id],
        )
        counts = tuple(len(result.sequences_ids[0]) for result in results)
        if counts != output_lengths:
            raise RuntimeError(f"tokens are missing: {counts} of {output_lengths}")


if __name__ == "__main__":
    answer(Batches, *sys.argv[1:])
