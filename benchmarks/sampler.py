"""Cost of sampling relative to the step that computes the logits: every kind of rule, 32 rows, 50,000 tokens.

    python -m benchmarks.sampler [--rows 32 --vocabulary 50000 --rounds 20]

The step (GPT-2's shape, random weights) and the sampler alone take turns, so that a slow minute of the machine affects
all of them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import onnx
import typer
from numpy.typing import NDArray
from onnx import helper
from rich.console import Console
from rich.progress import track
from rich.table import Table

from statewise.model.graph_io import choice_inputs, choice_results
from statewise.model.sampling_inputs import NOISE
from statewise.model.spec import CategoricalHead
from statewise.rules.sampling import GREEDY, SamplingParams
from statewise_export.builder import GraphBuilder, tensor_info
from statewise_export.choosing.choice import TokenChoice
from statewise_export.graphs.assembly import finish_model, step_graph
from statewise_server.runtime.ort.onnx import onnxruntime
from statewise_server.runtime.ort.sessions import create_session
from statewise_server.runtime.steps.adjustment import LogitAdjuster
from statewise_server.runtime.steps.runner import Runner
from statewise_server.runtime.steps.sampler_table import SamplerTable

POSITIONS = 100
NUM_PENALIZED = 100
"""Number of tokens that a penalized row has seen."""
MIXED = (
    GREEDY,
    SamplingParams(),
    SamplingParams(temperature=0.7, top_k=50),
    SamplingParams(top_p=0.9),
    SamplingParams(min_p=0.05),
    SamplingParams(top_k=50, top_p=0.9, min_p=0.05),
    SamplingParams(top_p=0.95, repetition_penalty=1.1),
)
RULES: dict[str, tuple[tuple[SamplingParams, ...], int]] = {
    "greedy": ((GREEDY,), -1),
    "greedy, log-probability": ((GREEDY,), 0),
    "greedy, log-probabilities of 5": ((GREEDY,), 5),
    "greedy, penalties": ((SamplingParams(temperature=0.0, repetition_penalty=1.1, frequency_penalty=0.2),), -1),
    "temperature 0.8": ((SamplingParams(temperature=0.8),), -1),
    "top-k 50": ((SamplingParams(top_k=50),), -1),
    "top-k 1000": ((SamplingParams(top_k=1000),), -1),
    "top-p 0.9": ((SamplingParams(top_p=0.9),), -1),
    "min-p 0.05": ((SamplingParams(min_p=0.05),), -1),
    "top-k 50, top-p 0.9, min-p 0.05": ((SamplingParams(top_k=50, top_p=0.9, min_p=0.05),), -1),
    "top-p 0.9, min-p 0.05": ((SamplingParams(top_p=0.9, min_p=0.05),), -1),
    "top-k 1000, top-p 0.9": ((SamplingParams(top_k=1000, top_p=0.9),), -1),
    "mixed": (MIXED, -1),
    "mixed, log-probabilities of 5": (MIXED, 5),
}
"""Sampling parameters, assigned to the rows in turn, and the number of most probable tokens reported."""


def run(
    rows: Annotated[int, typer.Option(min=1, help="Rows in the batch.")] = 32,
    vocabulary: Annotated[int, typer.Option(min=2, help="Size of the vocabulary.")] = 50_000,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each; the median counts.")] = 20,
    threads: Annotated[int, typer.Option(min=1, help="Threads of one run.")] = 2,
    layers: Annotated[int, typer.Option(min=1, help="Layers of the step; width 768, 12 heads.")] = 12,
) -> None:
    """Measure the sampler of every rule, as a share of a greedy decode step."""
    with tempfile.TemporaryDirectory() as scratch:
        contenders = {"step, greedy": _step(Path(scratch), rows, vocabulary, layers, threads, rounds)}
        contenders |= _samplers(rows, vocabulary, threads)
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for number in track(range(rounds + 1), "measuring", transient=True):
            for name, contender in contenders.items():
                started = time.perf_counter()
                contender()
                if number:  # the first round warms up
                    times[name].append(1e3 * (time.perf_counter() - started))
    Console().print(_table(f"{rows} rows, {vocabulary:,} tokens", {name: median(t) for name, t in times.items()}))


def _step(scratch: Path, rows: int, vocabulary: int, layers: int, threads: int, rounds: int) -> Callable[[], object]:
    """Return one decode step of GPT-2's shape, with random weights, over caches filled to POSITIONS."""
    import torch

    from statewise.plugins import load_plugin
    from statewise_export.graphs.weights import write_weights
    from statewise_export.trace.trace import trace_step

    plugin = load_plugin("transformer")
    config = plugin.config_class.model_validate(
        {
            "vocabulary_size": vocabulary, "hidden_size": 768, "num_layers": layers, "num_heads": 12,
            "max_positions": POSITIONS + rounds + 1, "positions": "learned", "activation": "gelu_tanh",
            "tied_embeddings": True,
        }
    )  # fmt: skip
    torch.manual_seed(0)
    spec = plugin.spec(config)
    traced = trace_step(plugin.build(config).eval(), spec)
    weights = write_weights(scratch / "weights.data", traced.weights)
    onnx.save(finish_model(step_graph(traced, spec), weights), scratch / "step.onnx")
    runner = Runner(spec, create_session(scratch / "step.onnx", intra_op_threads=threads), None, rows)
    uniforms = np.zeros((rows, 1), np.float32)
    for row in range(rows):
        runner.pool.clear_row(row)
        prompt = np.full((1, POSITIONS), 5)
        runner.step(slice(row, row + 1), prompt, np.full(1, POSITIONS), uniforms[:1], num_rows=rows)
    return lambda: runner.decode(rows, np.full((rows, 1), 7), uniforms, num_rows=rows)


def _samplers(rows: int, vocabulary: int, threads: int) -> dict[str, Callable[[], object]]:
    """Return the sampler alone under every rule, with logits as from random and as from trained weights."""
    session = create_session(sampler_model(vocabulary).SerializeToString(), intra_op_threads=threads)
    rng = np.random.default_rng(0)
    flat = rng.normal(0, 0.6, (rows, vocabulary)).astype(np.float32)
    # Zipf's law by rank, in a different order for each row: the most probable token has about a tenth of the mass.
    ranks = np.stack([rng.permutation(vocabulary) for _ in range(rows)]).astype(np.float32)
    peaked = (-1.2 * np.log(ranks + 1) + rng.normal(0, 0.1, ranks.shape)).astype(np.float32)
    return {
        f"{name}, {kind}": _sampler(session, logits, params, num_top)
        for name, (params, num_top) in RULES.items()
        for kind, logits in (("flat", flat), ("peaked", peaked))
    }


def sampler_model(vocabulary_size: int) -> onnx.ModelProto:
    """Make a graph of the sampler alone, with the logits as input."""
    head, op = CategoricalHead(vocabulary_size=vocabulary_size), GraphBuilder()
    sampled = TokenChoice(head).add(op, "logits", op.Squeeze(NOISE, op.constant([1])))
    inputs = [tensor_info("logits", "float32", ["row", vocabulary_size])]
    inputs += [tensor_info(*tensor) for tensor in choice_inputs(head, "row")]
    results = zip(sampled, choice_results(head, ["row"]), strict=True)
    outputs = [tensor_info(name, tensor.dtype, tensor.shape) for name, tensor in results]
    return finish_model(helper.make_graph(op.nodes, "sampler", inputs, outputs), [])


def _sampler(
    session: onnxruntime.InferenceSession,
    logits: NDArray[np.float32],
    params: tuple[SamplingParams, ...],
    num_top: int,
) -> Callable[[], object]:
    rng = np.random.default_rng(1)
    rows = len(logits)
    table = SamplerTable(rows, CategoricalHead(vocabulary_size=logits.shape[1]))
    for row in range(rows):
        each = params[row % len(params)]
        table.set(row, each, num_top)
        adjuster = LogitAdjuster(each, rng.integers(0, logits.shape[1], NUM_PENALIZED).tolist())
        table.adjustments[row] = adjuster.adjustment() if adjuster.changes else None
    feeds = {"logits": logits, **table.inputs(slice(0, rows), rng.random((rows, 1), dtype=np.float32))}
    arrays = {name: np.asarray(value) for name, value in feeds.items()}
    return lambda: session.run(None, arrays)


def _table(title: str, medians: dict[str, float]) -> Table:
    step = medians.pop("step, greedy")
    table = Table(title=f"{title}: greedy step {step:.1f} ms")
    for column in ("rule", "flat ms", "of the step", "peaked ms", "of the step"):
        table.add_column(column, justify="left" if column == "rule" else "right")
    for name in RULES:
        flat, peaked = (medians[f"{name}, {kind}"] for kind in ("flat", "peaked"))
        table.add_row(name, f"{flat:.2f}", f"{flat / step:.1%}", f"{peaked:.2f}", f"{peaked / step:.1%}")
    return table


if __name__ == "__main__":
    typer.run(run)
