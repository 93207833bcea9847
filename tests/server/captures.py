"""A variant for CUDA on the CPU, with sessions that do with graphs what CUDA does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from statewise.rules.sampling import SamplingParams
from statewise_server.runtime.ort.cuda_session import CudaSession
from statewise_server.runtime.ort.onnx import onnxruntime
from statewise_server.runtime.ort.sessions import create_session
from statewise_server.runtime.state.memory import HOST, Memory
from statewise_server.runtime.steps.captured import NOT_CAPTURED
from statewise_server.runtime.steps.runner import Runner, StepResult
from tests.models import draft_bundle

VARIANT = "cuda-float32"


@dataclass
class Recorder:
    """What the sessions of a runner were asked for: the graph of each run, and whether it was to be captured."""

    runs: list[tuple[int, bool]] = field(default_factory=list)
    failure: Exception | None = None
    """What captures raise."""

    @property
    def graphs(self) -> list[int]:
        return [graph for graph, _ in self.runs]

    @property
    def captures(self) -> list[int]:
        return [graph for graph, captures in self.runs if captures]


def recording(recorder: Recorder) -> type[CudaSession]:
    """A session that records its runs, and does with graphs what CUDA does.

    To capture one it computes the step three times; a run with the same graph is that run again, whatever is bound now.
    """

    class Recording(CudaSession):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self._graphs: dict[int, Any] = {}

        def run_with_iobinding(self, binding: Any, options: Any = None) -> None:
            graph = graph_of(options)
            recorder.runs.append((graph, False))
            super().run_with_iobinding(binding if graph == NOT_CAPTURED else self._graphs[graph], options)

        def capture(self, binding: Any, options: Any) -> bool:
            if recorder.failure is not None:
                raise recorder.failure
            if not super().capture(binding, options):
                return False
            graph = graph_of(options)
            assert graph not in self._graphs
            self._graphs[graph] = binding
            recorder.runs.append((graph, True))
            for _ in range(2):
                super().run_with_iobinding(binding, options)
            return True

    return Recording


def graph_of(options: Any) -> int:
    return int(options.get_run_config_entry("gpu_graph_id"))


def runner_of(recorder: Recorder | None = None, memory: Memory = HOST, capacity: int = 64) -> Runner:
    """A Transformer's variant for CUDA on the CPU, captured as on CUDA where there is a recorder."""
    bundle = draft_bundle("transformer", VARIANT)
    files = bundle.variant(VARIANT)
    assert files.step is not None
    assert files.choose is not None
    step, choose = bundle.path(files.step), bundle.path(files.choose)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session_class = recording(recorder) if recorder is not None else onnxruntime.InferenceSession
    return Runner(
        bundle.spec(VARIANT),
        session_class(str(step), options, providers=["CPUExecutionProvider"]),
        None,
        4,
        choose=create_session(choose, intra_op_threads=1),
        captures=recorder is not None,
        capacity=capacity,
        memory=memory,
    )


def start(runner: Runner, num_rows: int) -> None:
    """Give each row a prompt and sampling parameters of its own, all prompts in one ragged run."""
    rng = np.random.default_rng(0)
    for row in range(num_rows):
        runner.pool.clear_row(row)
        runner.sampler.set(row, SamplingParams(seed=row, temperature=0.7 * row, top_k=3 * row), num_top=1)
    items, lengths = rng.integers(2, 300, (num_rows, 9)), np.arange(num_rows) + 4
    runner.step(slice(0, num_rows), items, lengths, runner.sampler.no_noise(num_rows, 1), num_rows=num_rows)


def decode(runner: Runner, num_rows: int, num_steps: int, *, num_in_use: int | None = None) -> list[StepResult]:
    """Feed made-up items to the first rows, one to each in every step."""
    rng = np.random.default_rng(num_rows)
    noise = rng.random((num_steps, num_rows, 1), np.float32)
    items = rng.integers(2, 300, (num_steps, num_rows, 1))
    return [runner.decode(num_rows, items[i], noise[i], num_rows=num_in_use or num_rows) for i in range(num_steps)]


def assert_same(results: list[StepResult], expected: list[StepResult]) -> None:
    """That two runners have made the same, to the bit."""
    for result, other in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result.items, other.items)
        np.testing.assert_array_equal(result.log_probabilities, other.log_probabilities)
        np.testing.assert_array_equal(result.top_tokens, other.top_tokens)
