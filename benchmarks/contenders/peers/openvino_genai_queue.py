"""OpenVINO GenAI's continuous batching over paged attention."""

from __future__ import annotations

import sys
import time

import openvino
import openvino_genai

from benchmarks.contenders.process import Subject, answer
from benchmarks.workloads import Workload

NUM_THREADS = 2

CACHE_GIGABYTES = 2
"""Cache size; 32 streams of 512 positions in float32 take 1.2 GB."""


class ContinuousBatching(Subject):
    """All requests of a workload in one queue, at most `max_running` of them at once."""

    def __init__(self, folder: str, vocabulary_size: str, precision: str) -> None:
        self._folder = folder
        self._vocabulary_size = int(vocabulary_size)
        self._options = {"INFERENCE_NUM_THREADS": NUM_THREADS}
        if precision:
            self._options["INFERENCE_PRECISION_HINT"] = precision
        self._max_running = 0

    def measure(self, workload: Workload) -> float:
        """Seconds for the whole queue."""
        if workload.max_running != self._max_running:
            self._load(workload.max_running)
        prompts = [openvino.Tensor(prompt[None]) for prompt in workload.prompts(self._vocabulary_size)]
        configs = [_greedy(num_tokens) for num_tokens in workload.output_lengths]
        started = time.perf_counter()
        results = self._pipeline.generate(prompts, configs)
        elapsed = time.perf_counter() - started
        counts = tuple(len(result.m_generation_ids[0]) for result in results)
        if counts != workload.output_lengths:
            raise RuntimeError(f"tokens are missing: {counts}")
        return elapsed

    def _load(self, max_running: int) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_seqs = max_running
        scheduler.cache_size = CACHE_GIGABYTES
        scheduler.enable_prefix_caching = False
        self._pipeline = None  # frees the old one first: two would take twice the memory
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(self._folder, scheduler, "CPU", self._options)
        self._max_running = max_running


def _greedy(num_tokens: int) -> openvino_genai.GenerationConfig:
    config = openvino_genai.GenerationConfig()
    config.do_sample = False
    config.max_new_tokens = num_tokens
    config.set_eos_token_id(0)  # required, even to ignore it
    config.ignore_eos = True
    return config


if __name__ == "__main__":
    answer(ContinuousBatching, *sys.argv[1:])
