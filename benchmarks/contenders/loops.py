"""Baselines for the engine on the same machine: bare loops without a server, and memory reads alone."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.contenders.process import Subject, answer
from benchmarks.models import vocabulary_size
from benchmarks.workloads import Workload
from statewise.bundles.reader import Bundle, open_bundle
from statewise.model.graph_io import ITEMS, LENGTHS, NEXT_ITEMS, STEPS, state_input, state_output
from statewise_server.runtime.ort.sessions import create_session
from statewise_server.runtime.steps.sampler_table import SamplerTable

Array = NDArray[Any]

NUM_THREADS = 2


class StepLoop(Subject):
    """Bare loop over the step graph, by run_with_iobinding: everything in a decode step is bound beforehand.

    For CPU variants only, like all benchmarks: a CUDA step may choose the token in a separate graph.
    """

    def __init__(self, folder: str, variant: str) -> None:
        self._bundle = open_bundle(Path(folder), check_hashes=False)
        path = self._bundle.path(self._bundle.variant(variant).step)
        self._session = create_session(path, intra_op_threads=NUM_THREADS)

    def measure(self, workload: Workload) -> float:
        """Seconds for the prompts, one after the other, then for all rows together, token by token."""
        prompts = np.stack(workload.prompts(vocabulary_size(self._bundle)))
        sampling = greedy_inputs(self._bundle, len(prompts))
        current, new = _zero_state(self._bundle, len(prompts)), _zero_state(self._bundle, len(prompts))
        new |= {name: current[name] for name in _caches(self._bundle)}
        items, chosen = np.zeros((len(prompts), 1), np.int64), np.zeros(len(prompts), np.int64)
        fixed = sampling | {ITEMS: items, LENGTHS: np.ones(len(prompts), np.int64)}
        everyone = slice(0, len(prompts))
        turns = [self._bind(fixed, everyone, *states, chosen) for states in ((current, new), (new, current))]
        # GroupQueryAttention takes several items for a single row only.
        separate = [slice(row, row + 1) for row in range(len(prompts))] if prompts.shape[1] > 1 else [everyone]
        started = time.perf_counter()
        for rows in separate:
            inputs = {name: value[rows] if value.ndim else value for name, value in sampling.items()}
            inputs |= {ITEMS: prompts[rows], LENGTHS: np.full(len(prompts[rows]), prompts.shape[1])}
            self._session.run_with_iobinding(self._bind(inputs, rows, current, new, chosen))
        for step in range(1, workload.output_lengths[0]):
            items[:, 0] = chosen
            self._session.run_with_iobinding(turns[step % 2])
        return time.perf_counter() - started

    def _bind(
        self, inputs: dict[str, Array], rows: slice, current: dict[str, Array], new: dict[str, Array], chosen: Array
    ) -> Any:
        binding = self._session.io_binding()
        for name, value in inputs.items():
            _bind(binding.bind_input, name, value)
        for name in current:
            _bind(binding.bind_input, state_input(name), current[name][rows])
            _bind(binding.bind_output, state_output(name), new[name][rows])
        _bind(binding.bind_output, NEXT_ITEMS, chosen[rows])
        return binding


class DecodeLoop(Subject):
    """Bare loop over the decode graph, 16 steps per run; prompts have one token."""

    STEPS = 16

    def __init__(self, folder: str, variant: str) -> None:
        self._bundle = open_bundle(Path(folder), check_hashes=False)
        name = self._bundle.variant(variant).decode
        assert name is not None
        self._session = create_session(self._bundle.path(name), intra_op_threads=NUM_THREADS)

    def measure(self, workload: Workload) -> float:
        """Seconds for all rows together."""
        prompts = workload.prompts(vocabulary_size(self._bundle))
        feeds = greedy_inputs(self._bundle, len(prompts), self.STEPS)
        feeds |= {ITEMS: np.stack(prompts), STEPS: np.array(self.STEPS)}
        state = {state_input(name): value for name, value in _zero_state(self._bundle, len(prompts)).items()}
        names = [NEXT_ITEMS, *(state_output(spec.name) for spec in self._bundle.manifest.model.state)]
        started = time.perf_counter()
        for _ in range(-(-workload.output_lengths[0] // self.STEPS)):
            chosen, *new = self._session.run(names, feeds | state)
            feeds[ITEMS] = chosen[-1][:, None]
            state = dict(zip(state, new, strict=True))
        return time.perf_counter() - started


class Eager(Subject):
    """Eager PyTorch, step by step, with argmax in PyTorch; prompts have one token."""

    def __init__(self, folder: str, _: str) -> None:
        import torch

        from statewise_training.checkpoints.checkpoint import load_checkpoint

        torch.set_num_threads(NUM_THREADS)
        self._bundle = open_bundle(Path(folder), check_hashes=False)
        self._module: Any = load_checkpoint(self._bundle.folder).module.eval()

    def measure(self, workload: Workload) -> float:
        """Seconds for all rows together."""
        import torch

        from statewise_training.families.shared.state import zero_state

        items = torch.from_numpy(np.stack(workload.prompts(vocabulary_size(self._bundle))))
        lengths = torch.ones(len(items), dtype=torch.int64)
        state = zero_state(self._bundle.manifest.model, len(items), 0)
        started = time.perf_counter()
        with torch.inference_mode():
            for _ in range(workload.output_lengths[0]):
                hidden, state = self._module(items, lengths, state)
                items = self._module.head(hidden[:, -1]).argmax(dim=1, keepdim=True)
        return time.perf_counter() - started


class WeightsRead(Subject):
    """Memory reads without a model: as many bytes as the weights have, once per token, by two threads.

    Its rate for one stream is the memory-bandwidth limit: NumPy's maximum over int64 adds no time to the reading, and a
    buffer of this size fits no cache.
    """

    def __init__(self, num_bytes: str) -> None:
        self._parts = np.array_split(np.ones(int(num_bytes) // 8, np.int64), NUM_THREADS)
        self._threads = ThreadPoolExecutor(NUM_THREADS)

    def measure(self, workload: Workload) -> float:
        """Seconds to read the bytes once per token."""
        started = time.perf_counter()
        for _ in range(workload.num_outputs):
            list(self._threads.map(np.max, self._parts))
        return time.perf_counter() - started


def greedy_inputs(bundle: Bundle, num_rows: int, num_steps: int = 1) -> dict[str, Array]:
    """Inputs of the sampler for greedy rows."""
    table = SamplerTable(num_rows, bundle.manifest.model.head)
    inputs = table.inputs(slice(0, num_rows), table.no_noise(num_rows, num_steps))
    return {name: np.asarray(value) for name, value in inputs.items()}


def _zero_state(bundle: Bundle, num_rows: int) -> dict[str, Array]:
    spec = bundle.manifest.model
    return {s.name: np.zeros((num_rows, *s.row_shape(spec.max_positions or 0)), s.dtype) for s in spec.state}


def _caches(bundle: Bundle) -> list[str]:
    return [spec.name for spec in bundle.manifest.model.state if spec.kind == "cache"]


def _bind(bind: Callable[..., None], name: str, array: Array) -> None:
    bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


KINDS: dict[str, Any] = {
    "bare loop": StepLoop,
    "bare decode": DecodeLoop,
    "PyTorch eager": Eager,
    "weights read": WeightsRead,
}

if __name__ == "__main__":
    answer(KINDS[sys.argv[1]], *sys.argv[2:])
