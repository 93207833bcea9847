"""The engine over state in the device's memory, and how fast it is there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from statewise.model.spec import StateSpec
from statewise.rules.sampling import GREEDY, SamplingParams
from statewise_server.engine import Engine, EngineSettings, GenerationRequest
from statewise_server.engine.generation.state_memory import StateMemory
from statewise_server.engine.queue_channel import run_all
from statewise_server.runtime.state.device import DeviceMemory
from statewise_server.runtime.state.pool import StatePool
from statewise_server.runtime.steps.runner import Runner
from tests.cuda.drafts import MODELS, VARIANTS, draft

pytestmark = pytest.mark.cuda


@contextmanager
def engine_of(name: str, variant: str, **settings: Any) -> Iterator[Engine]:
    bundle, chosen = draft(name, variant), EngineSettings(**settings)
    memory = StateMemory.of(chosen, bundle.spec(variant), bundle.variant(variant).device)
    capacity, captures = memory.capacity_for(1), chosen.cuda_graphs
    runner = Runner.load(bundle, variant, max_rows=memory.max_rows, capacity=capacity, captures=captures)
    runner.warm_up()
    engine = Engine(bundle.manifest, variant, runner, None, chosen, memory)
    engine.start()
    try:
        yield engine
    finally:
        engine.close()


def requests(count: int, vocabulary_size: int) -> list[GenerationRequest]:
    rng = np.random.default_rng(3)
    kinds = [GREEDY, SamplingParams(seed=1), SamplingParams(seed=2, top_k=5), SamplingParams(seed=3, top_p=0.8)]
    return [
        GenerationRequest(
            prompt=rng.integers(2, vocabulary_size, int(rng.integers(1, 150))),
            sampling=kinds[index % len(kinds)],
            max_tokens=int(rng.integers(1, 60)),
            log_probabilities=0,
        )
        for index in range(count)
    ]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", MODELS)
def test_company_changes_no_more_than_rounding(name: str, variant: str) -> None:
    """Log-probabilities of a request alone and in company differ by rounding, for as long as its tokens are the same.

    Where two tokens are all but equally probable rounding decides, and what follows differs: in few requests.
    """
    with engine_of(name, variant, max_rows=8) as crowded, engine_of(name, variant, max_rows=1) as alone:
        asked = requests(24, crowded.manifest.model.input.vocabulary_size)
        together = run_all(crowded, asked)
        separate = [run_all(alone, [request])[0] for request in asked]

    num_parted = 0
    for one, other in zip(together, separate, strict=True):
        assert (one.error, other.error) == (None, None)
        same = next((i for i, (a, b) in enumerate(zip(one.items, other.items, strict=False)) if a != b), len(one.items))
        num_parted += same < len(one.items)
        left, right = ([entry.log_probability for entry in out.log_probabilities[:same]] for out in (one, other))
        np.testing.assert_allclose(left, right, atol=1e-3 if variant == "cuda-float32" else 2e-2)
    assert num_parted <= (2 if variant == "cuda-float32" else 8)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_move_inside_the_device(dtype: Any) -> None:
    """A row that is loaded, copied, cleared, resized and saved is to the bit what it is on the host; as are all."""
    specs = (
        StateSpec(name="hidden", shape=("row", 3), dtype=dtype),
        StateSpec(name="position", shape=("row",), dtype="int64"),
        StateSpec(name="key", kind="cache", shape=("row", 2, "position", 8), dtype=dtype),
    )
    host, device = StatePool(specs, 4, 16), StatePool(specs, 4, 16, DeviceMemory("cuda"))
    rng = np.random.default_rng(0)
    for row in range(4):
        host.current["hidden"][row], host.current["position"][row] = rng.standard_normal(3), row + 5
        host.caches["key"][row], host.num_filled[row] = rng.standard_normal((2, 16, 8)), row + 5
        device.load_row(row, host.save_row(row))

    for pool in (host, device):
        pool.copy_row(3, 0)
        pool.clear_row(1)
        pool.resize(5, 32, 4)

    for row in range(4):
        expected, actual = host.save_row(row), device.save_row(row)
        assert actual.num_filled == expected.num_filled
        assert all(actual.tensors[name].tobytes() == part.tobytes() for name, part in expected.tensors.items())


@pytest.mark.parametrize("captures", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", MODELS)
def test_speed(name: str, variant: str, captures: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Tokens per second of 1 and of 16 streams, printed: a figure to look at, not a limit."""
    for num_rows in (1, 16):
        with engine_of(name, variant, max_rows=16, cuda_graphs=captures) as engine:
            asked = [GenerationRequest(np.array([5, 6, 7]), GREEDY, 200) for _ in range(num_rows)]
            run_all(engine, asked)
            started = time.perf_counter()
            outputs = run_all(engine, asked)
            seconds = time.perf_counter() - started
        num_tokens = sum(len(output.items) for output in outputs)
        with capsys.disabled():
            graphs = "" if captures else ", without CUDA graphs"
            print(f"\n{name} {variant}{graphs}, {num_rows} streams: {num_tokens / seconds:.0f} tokens/s", end="")
        assert num_tokens == 200 * num_rows
