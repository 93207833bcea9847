"""Sampling parameters in the layout of the graphs, and the adjustments of each row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statewise.model.graph_io import choice_inputs
from statewise.model.spec import CategoricalHead, HeadSpec, MixtureHead, ValueHead
from statewise.rules.sampling import SamplingParams, adjust_logits
from statewise_server.runtime.steps.adjustment import LogitAdjuster
from statewise_server.runtime.steps.sampler_table import SamplerTable

HEAD = CategoricalHead(vocabulary_size=100)

FULL = SamplingParams(
    temperature=0.5,
    top_k=7,
    top_p=0.75,
    min_p=0.25,
    repetition_penalty=1.5,
    presence_penalty=0.125,
    frequency_penalty=-0.5,
)


RULES = {
    "sampling.temperature": 0.5,
    "sampling.top_k": 7,
    "sampling.top_p": 0.75,
    "sampling.min_p": 0.25,
    "sampling.repetition_penalty": 1.5,
    "sampling.presence_penalty": 0.125,
    "sampling.frequency_penalty": -0.5,
}


def rules_of(table: SamplerTable, row: int) -> dict[str, float]:
    """Return the row's number for every rule, by the name of its graph input."""
    return {name: values[row] for name, values in table.rules.items()}


def adjusted_tokens(table: SamplerTable, row: int) -> list[int]:
    """Return the tokens of the row that a bias or a penalty changes."""
    inputs = table.inputs(slice(row, row + 1), table.no_noise(1, 1))
    tokens: list[int] = inputs["sampling.adjusted_tokens"][0].tolist()
    return tokens


def test_each_rule_is_an_input_of_its_own() -> None:
    """A graph reads each rule by its name, one number per row, and how many top tokens any row asks for."""
    table = SamplerTable(2, HEAD)

    table.set(1, FULL, num_top=3)
    inputs = table.inputs(slice(0, 2), table.no_noise(2, 1))

    assert {name: inputs[name][1] for name in RULES} == RULES
    assert inputs["sampling.num_top"] == 3


def test_the_inputs_are_those_of_the_contract() -> None:
    """Names, types and numbers of dimensions are what export gives the graphs of each kind of head."""
    heads: list[HeadSpec] = [HEAD, MixtureHead(features=2, components=3), ValueHead(features=2)]
    for head in heads:
        table = SamplerTable(2, head)
        inputs = table.inputs(slice(0, 2), table.no_noise(2, 1))

        actual = {name: (np.asarray(value).dtype.name, np.ndim(value)) for name, value in inputs.items()}
        assert actual == {each.name: (each.dtype, len(each.shape)) for each in choice_inputs(head, "row")}


def test_an_unused_row_is_greedy_and_asks_for_nothing() -> None:
    """A row that nobody has set costs no sampling and no log-probabilities."""
    table = SamplerTable(1, HEAD)

    assert table.rules["sampling.temperature"][0] == 0.0
    assert table.num_top[0] == -1


def test_values_are_predicted_without_noise() -> None:
    """Where the head draws nothing no numbers are drawn for it, whatever the temperature."""
    table = SamplerTable(1, ValueHead(features=2))
    table.set(0, SamplingParams(temperature=1.0, seed=3))

    assert not table.noise(slice(0, 1), [0], 4).any()


def test_a_row_set_anew_forgets_its_predecessor() -> None:
    """The adjustment of the sequence before does not reach the next one in its row."""
    table = SamplerTable(1, HEAD)
    table.adjustments[0] = LogitAdjuster(SamplingParams(logit_bias={1: 1.0}), ()).adjustment()

    table.set(0, SamplingParams())

    assert adjusted_tokens(table, 0) == []


def test_copied_and_saved_rows_are_independent() -> None:
    """A copy and a saved row keep their values when the source row is set anew."""
    table = SamplerTable(3, HEAD)
    table.set(0, FULL, num_top=2)
    table.adjustments[0] = LogitAdjuster(SamplingParams(logit_bias={4: 2.0}), ()).adjustment()
    saved = table.save_row(0)
    table.copy_row(0, 1)

    table.set(0, SamplingParams(temperature=9.0))
    table.load_row(2, saved)

    for row in (1, 2):
        assert rules_of(table, row) == RULES
        assert table.num_top[row] == 2
        assert adjusted_tokens(table, row) == [4]


@pytest.mark.parametrize("prompt", [(), (3, 3, 5)])
def test_an_adjustment_lists_each_token_once(prompt: tuple[int, ...]) -> None:
    """Prompt, output and bias tokens come once each, with bias, seen flag and count."""
    adjuster = LogitAdjuster(SamplingParams(presence_penalty=1.0, logit_bias={5: -2.0, 8: 1.0}), prompt)
    adjuster.append([5, 9, 5])

    adjustment = adjuster.adjustment()
    assert adjustment is not None
    values = zip(adjustment.logit_bias, adjustment.seen, adjustment.output_counts, strict=True)
    entries = {int(token): list(value) for token, value in zip(adjustment.tokens, values, strict=True)}

    assert entries == ({3: [0, 1, 0]} if prompt else {}) | {5: [-2, 1, 2], 8: [1, 0, 0], 9: [0, 1, 1]}


def test_a_sequence_without_bias_or_penalty_keeps_no_count() -> None:
    """Where nothing is adjusted there is no adjustment, however long the sequence."""
    adjuster = LogitAdjuster(SamplingParams(), [1, 2, 3])
    adjuster.append([4, 5])

    assert adjuster.adjustment() is None
    assert not adjuster.changes


tokens = st.lists(st.integers(0, 11), max_size=8)
sequences = st.tuples(
    st.builds(
        SamplingParams,
        repetition_penalty=st.sampled_from([1.0, 1.5, 0.5]),
        presence_penalty=st.sampled_from([0.0, 0.25]),
        frequency_penalty=st.sampled_from([0.0, -0.5]),
        logit_bias=st.dictionaries(st.integers(0, 11), st.sampled_from([-3.0, 1.0]), max_size=4),
    ),
    tokens,
    tokens,
)


@given(st.lists(sequences, min_size=1, max_size=4))
def test_ragged_adjustments_are_padded_harmlessly(rows: list[tuple[SamplingParams, list[int], list[int]]]) -> None:
    """Writing every entry of a row, repeated ones too, gives the logits of the rules."""
    table = SamplerTable(len(rows), HEAD)
    for row, (params, prompt, output) in enumerate(rows):
        table.set(row, params)
        adjuster = LogitAdjuster(params, prompt)
        adjuster.append(output)
        table.adjustments[row] = adjuster.adjustment()
    logits = np.linspace(-3, 3, 12, dtype=np.float32)

    inputs = table.inputs(slice(0, len(rows)), table.no_noise(len(rows), 1))
    names = ("adjusted_tokens", "logit_bias", "seen", "output_counts")
    entries = zip(*(inputs[f"sampling.{name}"] for name in names), strict=True)

    for row, ((params, prompt, output), columns) in enumerate(zip(rows, entries, strict=True)):
        adjusted = logits.copy()
        repetition, presence, frequency = (
            table.rules[f"sampling.{name}_penalty"][row] for name in ("repetition", "presence", "frequency")
        )
        for token, bias, seen, repeats in zip(*columns, strict=True):
            if table.adjustments[row] is not None:
                value = logits[token] + bias
                value = (value / repetition if value > 0 else value * repetition) if seen else value
                adjusted[token] = value - presence * (repeats > 0) - frequency * repeats

        assert adjusted.tolist() == adjust_logits(logits, params, prompt, output).tolist()
