"""The contract between graphs and runtime: names, sampling rules, and graphs that lack one."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from statewise.bundles.onnx_check import check_graphs
from statewise.bundles.reader import Bundle
from statewise.errors import InvalidRequestError
from statewise.model import graph_io
from statewise.model.graph_io import GraphIO
from statewise.model.sampling_inputs import SAMPLING_INPUTS, SamplingInput, check_rules
from statewise.model.spec import CategoricalHead, MixtureHead, ValueHead
from statewise.rules.sampling import SamplingParams
from statewise_server.engine import GenerationRequest
from statewise_server.engine.queue_channel import run_all
from statewise_server.runtime.ort.sessions import create_session
from tests.models import draft_bundle, start_engine

HEAD = CategoricalHead(vocabulary_size=9)

OTHER = SamplingParams(
    temperature=0.5,
    top_k=3,
    top_p=0.5,
    min_p=0.1,
    repetition_penalty=1.2,
    presence_penalty=0.1,
    frequency_penalty=0.1,
    logit_bias={1: 2.0},
)
"""Parameters of which every rule changes something."""


def test_every_sampling_parameter_is_a_rule_of_the_table() -> None:
    """All fields of SamplingParams but the seed are in the table, with the default as the neutral value."""
    fields = {field.name for field in dataclasses.fields(SamplingParams)} - {"seed"}

    assert {rule.field for rule in SAMPLING_INPUTS} == fields
    assert all(rule.is_neutral(SamplingParams()) for rule in SAMPLING_INPUTS)
    assert not any(rule.is_neutral(OTHER) for rule in SAMPLING_INPUTS)


@pytest.mark.parametrize("lacking", SAMPLING_INPUTS, ids=lambda rule: rule.field)
def test_a_missing_rule_is_refused_by_name(lacking: SamplingInput) -> None:
    """Only the request that needs the rule is refused, and the error names the field and the value."""
    declared = {rule.name for rule in SAMPLING_INPUTS} - {lacking.name}

    check_rules(dataclasses.replace(OTHER, **{lacking.field: getattr(SamplingParams(), lacking.field)}), HEAD, declared)
    with pytest.raises(InvalidRequestError, match=r"got .*: the model was exported without this rule") as caught:
        check_rules(OTHER, HEAD, declared)

    assert caught.value.field == lacking.field


def test_rules_of_tokens_are_not_missed_elsewhere() -> None:
    """A mixture needs its temperature only, and a predicted value no rule at all."""
    with pytest.raises(InvalidRequestError, match=r"^temperature: ") as caught:
        check_rules(OTHER, MixtureHead(features=1, components=2), ())
    check_rules(OTHER, ValueHead(features=1), ())

    assert caught.value.field == "temperature"


@pytest.mark.parametrize(
    ("model", "variant"),
    [
        ("gru-text", "cpu-float32"),
        ("transformer", "cpu-float32"),
        ("transformer", "cuda-float32"),
        ("lstm-mixture", "cpu-float32"),
    ],
)
def test_exported_graphs_have_the_inputs_and_outputs_of_the_contract(model: str, variant: str) -> None:
    """Each graph of a bundle has these names, in this order, and no others."""
    bundle = draft_bundle(model, variant)
    files, spec = bundle.variant(variant), bundle.spec(variant)
    step = graph_io.model_io(spec) if files.choose else graph_io.step_io(spec)
    expected = {
        files.step: step,
        files.choose: graph_io.choose_io(spec),
        files.decode: graph_io.decode_io(spec),
        files.mixed: graph_io.mixed_io(spec),
        files.score: graph_io.score_io(spec),
    }
    actual = {name: names(bundle.path(name)) for name in files.graphs}

    assert actual == {name: names_of(expected[name]) for name in files.graphs}


def names(path: Path) -> tuple[list[str], list[str]]:
    """Return the names of a graph's inputs and outputs."""
    session = create_session(path, intra_op_threads=1)
    return [value.name for value in session.get_inputs()], [value.name for value in session.get_outputs()]


def names_of(io: GraphIO) -> tuple[list[str], list[str]]:
    """Return the names that the contract has."""
    return [tensor.name for tensor in io.inputs], [tensor.name for tensor in io.outputs]


def without_input(bundle: Bundle, name: str, value: np.ndarray, folder: Path) -> Bundle:
    """Copy a bundle, with a constant in place of an input of all its graphs, as in one from before that input."""
    shutil.copytree(bundle.folder, folder)
    for file in bundle.variant("cpu-float32").graphs:
        model = onnx.load(str(folder / file), load_external_data=False)
        kept = [each for each in model.graph.input if each.name != name]
        if len(kept) < len(model.graph.input):
            del model.graph.input[:]
            model.graph.input.extend(kept)
            model.graph.initializer.append(numpy_helper.from_array(value, name))
            (folder / file).write_bytes(model.SerializeToString())
    return Bundle(folder, bundle.manifest)


@pytest.mark.parametrize("model", ["gru-text", "transformer"])
def test_a_bundle_that_lacks_a_rule_is_served_without_it(model: str, tmp_path: Path) -> None:
    """Requests for other rules get the tokens they always got; one for the missing rule is refused by name."""
    bundle = draft_bundle(model, "cpu-float32")
    older = without_input(bundle, "sampling.frequency_penalty", np.zeros(1, np.float32), tmp_path / "older")
    check_graphs(older, "cpu-float32")
    prompt = np.array([5, 6, 7])
    params = [SamplingParams(seed=3), SamplingParams(seed=3, temperature=0.7, top_k=20, presence_penalty=1.5)]
    made = []
    for each in (bundle, older):
        engine = start_engine(each)
        try:
            made.append([list(o.items) for o in run_all(engine, [GenerationRequest(prompt, p, 12) for p in params])])
            if each is older:
                with pytest.raises(InvalidRequestError, match=r"^frequency_penalty: .* got 0\.5"):
                    run_all(engine, [GenerationRequest(prompt, SamplingParams(frequency_penalty=0.5), 12)])
        finally:
            engine.close()

    assert made[0] == made[1]
    assert all(len(items) == 12 for items in made[0])
