"""The sampler in the graph against the rules in NumPy, and a row against its company."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from export.builder import GraphBuilder
from export.graphs import IR_VERSION
from export.sampler import INPUTS, NUM_CANDIDATES, add_sampler
from export.trace import OPSET
from server.runtime.adjustment import LogitAdjuster
from server.runtime.onnx import onnxruntime
from server.runtime.sampler_table import SamplerTable
from statewise.sampling import BLOCK, GREEDY, FloatArray, SamplingParams, adjust_logits, choose, log_softmax

LARGEST = np.nextafter(np.float32(1), np.float32(0))
SIZES = (2, 61, NUM_CANDIDATES, 300, 5000)
"""Below, at and above BLOCK and NUM_CANDIDATES, which both are 128."""
ROUNDING = np.float32(1e-6)
"""NumPy and ONNX Runtime round exp() differently, so a draw this close to a border may fall on either side."""


@dataclass
class Row:
    """One row of a batch: its logits, and how its token is chosen."""

    logits: FloatArray
    params: SamplingParams
    uniform: np.float32
    prompt: Sequence[int] = field(default_factory=tuple)
    output: Sequence[int] = field(default_factory=tuple)


@cache
def session(vocabulary_size: int) -> onnxruntime.InferenceSession:
    """Build a graph of nothing but the sampler, its logits an input."""
    op = GraphBuilder()
    sampled = add_sampler(op, "logits", "uniform", vocabulary_size)
    inputs: list[tuple[str, int, list[Any]]] = [
        ("logits", TensorProto.FLOAT, ["row", vocabulary_size]),
        ("uniform", TensorProto.FLOAT, ["row"]),
        (INPUTS.parameters, TensorProto.FLOAT, ["row", 6]),
        (INPUTS.top_k, TensorProto.INT64, ["row"]),
        (INPUTS.adjust_ids, TensorProto.INT64, ["row", "entry"]),
        (INPUTS.adjust_values, TensorProto.FLOAT, ["row", "entry", 3]),
        (INPUTS.num_top, TensorProto.INT64, []),
    ]
    types = (TensorProto.INT64, TensorProto.FLOAT, TensorProto.INT64, TensorProto.FLOAT)
    ranks = (["row"], ["row"], ["row", "top"], ["row", "top"])
    graph = helper.make_graph(
        op.nodes,
        "sampler",
        [helper.make_tensor_value_info(*each) for each in inputs],
        [helper.make_tensor_value_info(*each) for each in zip(sampled, types, ranks, strict=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def run(rows: Sequence[Row], num_top: int = 0) -> list[np.ndarray]:
    """Run the graph on a batch: tokens, their log-probabilities, the most probable tokens and theirs."""
    table = SamplerTable(len(rows))
    for index, row in enumerate(rows):
        table.set(index, row.params)
        adjuster = LogitAdjuster(row.params, row.prompt)
        adjuster.append(row.output)
        table.adjustments[index] = adjuster.adjustment()
    ids, values = table.adjustment_arrays(slice(0, len(rows)))
    feeds = {
        "logits": np.stack([row.logits for row in rows]),
        "uniform": np.array([row.uniform for row in rows], np.float32),
        INPUTS.parameters: table.parameters,
        INPUTS.top_k: table.top_k,
        INPUTS.adjust_ids: ids,
        INPUTS.adjust_values: values,
        INPUTS.num_top: np.array(num_top),
    }
    return list(session(len(rows[0].logits)).run(None, feeds))


def expected(row: Row) -> int:
    return choose(adjust_logits(row.logits, row.params, row.prompt, row.output), row.params, row.uniform)


def borders(row: Row) -> set[int]:
    """Return the tokens that the rules give a rounding error away from the uniform number."""
    adjusted = adjust_logits(row.logits, row.params, row.prompt, row.output)
    near = (np.clip(row.uniform + shift, np.float32(0), LARGEST) for shift in (-ROUNDING, ROUNDING))
    return {choose(adjusted, row.params, uniform) for uniform in near}


def assert_agree(rows: Sequence[Row], max_at_a_border: int = 0) -> None:
    """Assert that every row's token is the rules' one; so many may differ, if a border is a rounding error away."""
    tokens = run(rows)[0].tolist()
    differing = [(row, token) for row, token in zip(rows, tokens, strict=True) if token != expected(row)]

    assert all(token in borders(row) for row, token in differing), [(r.params, t, expected(r)) for r, t in differing]
    assert len(differing) <= max_at_a_border


def random_params(rng: np.random.Generator, size: int) -> SamplingParams:
    """Draw parameters of every kind: each rule is on in some rows and off in others."""

    def maybe(value: float, otherwise: float) -> float:
        return value if rng.random() < 0.4 else otherwise

    bias = {int(token): float(rng.normal(0, 3)) for token in rng.integers(0, size, 4)}
    return SamplingParams(
        temperature=rng.choice([0.0, 0.3, 0.8, 1.0, 2.5]),
        top_k=int(maybe(rng.choice([1, 2, 40, NUM_CANDIDATES, NUM_CANDIDATES + 1, 10_000]), 0)),
        top_p=maybe(rng.uniform(0.01, 0.999), 1.0),
        min_p=maybe(rng.uniform(0.001, 0.5), 0.0),
        repetition_penalty=maybe(rng.uniform(0.5, 2), 1.0),
        presence_penalty=maybe(rng.uniform(-2, 2), 0.0),
        frequency_penalty=maybe(rng.uniform(-2, 2), 0.0),
        logit_bias=bias if rng.random() < 0.3 else {},
    )


def random_row(rng: np.random.Generator, size: int) -> Row:
    return Row(
        rng.normal(0, rng.choice([0.01, 1, 5]), size).astype(np.float32),
        random_params(rng, size),
        rng.random(dtype=np.float32),
        rng.integers(0, size, 9).tolist(),
        rng.integers(0, size, rng.integers(0, 12)).tolist(),
    )


@pytest.mark.parametrize("size", SIZES)
def test_the_graph_follows_the_rules(size: int) -> None:
    """Random logits and parameters of every kind give the tokens that the rules give, in ragged batches."""
    rng = np.random.default_rng(size)
    rows = [random_row(rng, size) for _ in range(400)]

    for start in range(0, len(rows), 50):
        assert_agree(rows[start : start + 50], max_at_a_border=1)


@pytest.mark.parametrize("size", SIZES)
def test_flat_distributions_need_every_token(size: int) -> None:
    """A nearly flat distribution with top_p 0.99, or a small min_p, keeps more tokens than are looked at first."""
    rng = np.random.default_rng(size + 1)
    params = [SamplingParams(top_p=0.99), SamplingParams(min_p=0.1), SamplingParams(top_k=size, top_p=0.95)]
    rows = [
        Row(rng.normal(0, 0.01, size).astype(np.float32), params[index % 3], np.float32(uniform))
        for index, uniform in enumerate(np.linspace(0, LARGEST, 30))
    ]

    assert_agree(rows, max_at_a_border=1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("uniform", [np.float32(0), np.float32(0.5), LARGEST])
def test_extreme_logits(size: int, uniform: np.float32) -> None:
    """Huge logits, ties everywhere, and tokens that are all but impossible are drawn as the rules draw them."""
    rng = np.random.default_rng(size + 2)
    logits = [
        np.full(size, 1e4, np.float32),
        np.full(size, -1e4, np.float32),
        rng.choice([-1e4, 1e4], size).astype(np.float32),
        rng.integers(0, 2, size).astype(np.float32),
        np.zeros(size, np.float32),
    ]
    params = [
        GREEDY,
        SamplingParams(),
        SamplingParams(temperature=0.01, top_k=3),
        SamplingParams(temperature=100.0, top_k=200),
        SamplingParams(min_p=1.0),
        SamplingParams(top_p=1e-9),
        SamplingParams(logit_bias=dict.fromkeys(range(size // 2), -100.0)),
    ]

    assert_agree([Row(values, each, uniform) for values in logits for each in params])


@pytest.mark.parametrize("size", SIZES)
def test_logits_of_minus_infinity_through_the_bias(size: int) -> None:
    """A token banned by a bias of minus infinity is never drawn, nor is it in the way of the others."""
    rng = np.random.default_rng(size + 3)
    banned = dict.fromkeys(range(size - 1), -np.inf)
    rows = [
        Row(rng.normal(0, 1, size).astype(np.float32), params, uniform)
        for params in (
            SamplingParams(logit_bias=banned),
            SamplingParams(logit_bias=banned, top_k=size),
            SamplingParams(logit_bias=banned, top_p=0.99),
            SamplingParams(logit_bias=banned, temperature=0.0),
        )
        for uniform in (np.float32(0), np.float32(0.3), LARGEST)
    ]

    assert set(run(rows)[0].tolist()) == {size - 1}
    assert_agree(rows)


def company() -> list[Row]:
    """Make a batch of every kind of row: greedy, unrestricted, restricted, flat, biased and penalized."""
    rng = np.random.default_rng(5)
    kinds = [
        (1.0, GREEDY),
        (1.0, SamplingParams()),
        (3.0, SamplingParams(temperature=0.7, top_k=40, top_p=0.9)),
        (0.01, SamplingParams(top_p=0.99)),
        (2.0, SamplingParams(logit_bias={3: 4.0, 1: -100.0})),
        (2.0, SamplingParams(repetition_penalty=1.3, presence_penalty=0.5)),
        (2.0, SamplingParams(temperature=0.0, frequency_penalty=1.0)),
        (0.5, SamplingParams(min_p=0.02)),
    ]
    return [
        Row(
            rng.normal(0, width, 1003).astype(np.float32),
            params,
            rng.random(dtype=np.float32),
            rng.integers(0, 1003, 20).tolist(),
            rng.integers(0, 1003, 7).tolist(),
        )
        for width, params in kinds * 3
    ]


def parts(result: Sequence[np.ndarray], row: int) -> list[bytes]:
    return [values[row].tobytes() for values in result]


def test_a_row_does_not_depend_on_its_company() -> None:
    """Token and log-probabilities are bit for bit the same alone, in a pair and in every order of a full batch."""
    rows = company()
    together = run(rows, num_top=5)
    order = np.random.default_rng(0).permutation(len(rows)).tolist()
    shuffled = run([rows[index] for index in order], num_top=5)

    for index, row in enumerate(rows):
        whole = parts(together, index)

        assert parts(run([row], num_top=5), 0) == whole
        assert parts(run([rows[index - 1], row], num_top=5), 1) == whole
        assert parts(shuffled, order.index(index)) == whole


def border_of(row: Row) -> tuple[np.float32, np.float32]:
    """Return two neighbouring uniform numbers that give the row, alone, two different tokens."""
    first = run([row])[0][0]
    # As integers, floats that are not negative lie in order, so that halving ends at neighbours.
    low, high = (int(np.float32(value).view(np.int32)) for value in (row.uniform, LARGEST))
    while high - low > 1:
        middle = (low + high) // 2
        here = run([replace(row, uniform=np.int32(middle).view(np.float32))])[0][0]
        low, high = (middle, high) if here == first else (low, middle)
    return np.int32(low).view(np.float32), np.int32(high).view(np.float32)


def test_a_draw_at_the_very_border_does_not_depend_on_its_company() -> None:
    """The last number that gives one token and the first that gives another do so in every batch: no bit differs."""
    rows = [row for row in company()[:8] if not row.params.is_greedy]
    at_borders = [
        [replace(row, uniform=number) for row, number in zip(rows, side, strict=True)]
        for side in zip(*map(border_of, rows), strict=True)
    ]
    below, above = ([int(run([row])[0][0]) for row in side] for side in at_borders)

    assert all(one != other for one, other in zip(below, above, strict=True))
    for batch, alone in zip(at_borders, (below, above), strict=True):
        for shift in range(len(batch)):
            assert run(batch[shift:] + batch[:shift])[0].tolist() == alone[shift:] + alone[:shift]


@pytest.mark.parametrize("size", [300, 512, 5000])
def test_the_largest_number_stays_inside_the_vocabulary(size: int) -> None:
    """The largest uniform number draws a token that exists, however the sums of the blocks were rounded."""
    rng = np.random.default_rng(size + 4)
    rows = [
        Row(rng.normal(0, 1, size).astype(np.float32), SamplingParams(temperature=t), LARGEST)
        for t in (1.0, 5.0, 50.0)
        for _ in range(100)
    ]

    tokens = run(rows)[0]

    assert tokens.max() < size
    assert max(map(expected, rows)) < size


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, BLOCK, 1002])
def test_a_row_that_is_not_finite_gives_minus_one_alone(poison: float, place: int) -> None:
    """NaN or infinity anywhere in a row's logits makes its token -1; the rows beside it stay as they are."""
    rows = company()
    clean = run(rows, num_top=5)
    for bad in range(8):
        rows = company()
        rows[bad].logits[place] = poison
        result = run(rows, num_top=5)

        assert result[0][bad] == -1
        assert all(parts(result, row) == parts(clean, row) for row in range(len(rows)) if row != bad)


def test_log_probabilities_are_the_models_own() -> None:
    """Chosen and most probable tokens come with log-probabilities before temperature, bias and penalties."""
    rows = company()

    tokens, log_probabilities, top_tokens, top_log_probabilities = run(rows, num_top=4)
    own = [log_softmax(row.logits) for row in rows]

    assert log_probabilities == pytest.approx([own[row][token] for row, token in enumerate(tokens)], abs=1e-5)
    for row, values in enumerate(own):
        best = np.argsort(-values, kind="stable")[:4]

        assert top_tokens[row].tolist() == best.tolist()
        assert top_log_probabilities[row] == pytest.approx(values[best], abs=1e-5)


def test_log_probabilities_are_left_out_unless_asked_for() -> None:
    """num_top -1 gives zeros and no tokens, and the same choice."""
    rows = company()

    silent, asked = run(rows, num_top=-1), run(rows, num_top=2)

    assert (silent[0] == asked[0]).all()
    assert not silent[1].any()
    assert silent[2].shape == silent[3].shape == (len(rows), 0)


@pytest.mark.parametrize("make", [lambda size: np.zeros(size), lambda size: np.arange(size) % 7])
def test_ties_go_to_the_lowest_id(make: Callable[[int], np.ndarray]) -> None:
    """Among equal logits, greedy takes the lowest id and top-k keeps the lowest ones."""
    logits = make(300).astype(np.float32)
    order = np.argsort(-logits, kind="stable")
    rows = [Row(logits, SamplingParams(top_k=3), np.float32(u)) for u in (0.0, 0.4, 0.9)]

    tokens = run([Row(logits, GREEDY, np.float32(0)), *rows])[0]

    assert tokens.tolist() == [order[0], *order[:3].tolist()]
