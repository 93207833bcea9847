"""The certificate: given to good exports, refused to every kind of wrong one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import statewise_export.choosing.choice
import statewise_export.graphs.variant
from statewise.bundles.certificate import Certificate, check_certificate
from statewise.bundles.reader import find_bundle, open_bundle
from statewise.model.spec import MixtureHead
from statewise.plugins import load_plugin
from statewise_export.builder import GraphBuilder
from statewise_export.certify.certify import certify
from statewise_export.certify.steps.outputs import CHUNKS
from statewise_export.certify.trial import BATCH_SIZES, NUM_GENERATED, PROMPT_LENGTHS, Trial
from statewise_export.choosing.mixture import add_mixture_sampler
from statewise_export.choosing.sampler import Sampled, add_sampler
from statewise_export.graphs.variant import Tracer
from statewise_export.pipeline import Exported, export_checkpoint
from statewise_export.trace.trace import TracedStep, trace_mixed, trace_step
from statewise_training.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tests.models import MODELS, draft_of, make_checkpoint

HIDDEN = 8


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    import torch

    folder = tmp_path_factory.mktemp("checkpoint")
    plugin = load_plugin("gru")
    config = plugin.config_class.model_validate({"vocabulary_size": 19, "hidden_size": HIDDEN})
    torch.manual_seed(6)
    save_checkpoint(folder, name="small", plugin_name="gru", config=config, module=plugin.build(config))
    return load_checkpoint(folder)


@pytest.fixture(scope="module")
def traced(checkpoint: Checkpoint) -> TracedStep:
    return trace_step(checkpoint.module, checkpoint.plugin.spec(checkpoint.config))


Export = Callable[[TracedStep], Exported]


@pytest.fixture
def export_traced(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Export:
    """Export the checkpoint with another step in place of its own."""

    def export_it(step: TracedStep) -> Exported:
        monkeypatch.setattr(statewise_export.graphs.variant, "trace_step", lambda *_: step)
        return export_checkpoint(checkpoint, tmp_path / "models")

    return export_it


def missed(exported: Exported, repository: Path) -> set[str]:
    """Assert that no bundle was made; return the names of the checks of graphs that were missed.

    Answers of the engine, which runs the same graphs, may be wrong too.
    """
    assert exported.folder is None
    (certificate,) = exported.certificates
    assert not certificate.passed
    assert [path.name for path in repository.rglob("*") if path.is_file()] in ([], [".lock"])
    return {c.name for c in certificate.checks if not c.passed and not c.name.startswith("served: ")}


@pytest.mark.parametrize("name", MODELS)
def test_a_good_export_is_certified(name: str, repository: Path) -> None:
    """The certificate of a good bundle passes, in every shape it promises, and speaks for the files as they are."""
    bundle = open_bundle(find_bundle(repository, name))

    certificate = check_certificate(bundle, "cpu-float32")

    assert certificate.outputs.max_absolute_error <= 1e-5
    assert certificate.outputs.positions_compared > 1000
    assert certificate.batch_invariant
    assert certificate.chunk_invariant
    steps = [case for case in certificate.cases if case.graph == "step"]
    assert {(case.batch_size, case.chunk) for case in steps} == {
        (size, chunk) for size in BATCH_SIZES for chunk in CHUNKS
    }
    limit = bundle.manifest.model.max_positions
    near_limit = {limit - 1} if limit else set()
    assert {case.prompt_length for case in steps if case.batch_size == 1} == {*PROMPT_LENGTHS, *near_limit}
    assert {"torch", "onnx", "numpy", "statewise"} <= certificate.libraries.keys()
    assert len(set(certificate.seeds)) > 5
    for file, digest in certificate.files.items():
        assert hashlib.sha256((bundle.folder / file).read_bytes()).hexdigest() == digest
    tokens = (certificate.greedy_tokens, certificate.sampled_tokens)
    if MODELS[name].get("features"):
        assert tokens == (None, None)
        vectors = certificate.sampled_vectors
        assert (vectors is not None) == (bundle.manifest.model.head.kind == "mixture")
        assert vectors is None or vectors.equal + vectors.near_ties == vectors.compared >= 7 * 32
        return
    for agreement in tokens:
        assert agreement is not None
        assert agreement.compared >= 7 * NUM_GENERATED or agreement.near_ties
        assert agreement.equal + agreement.near_ties == agreement.compared


def test_a_model_with_few_positions_is_certified(tmp_path: Path) -> None:
    """Of real vectors too, which are fed back for as long as the positions last, down to the two that a model needs."""
    sizes = {"features": 2, "hidden_size": 8, "num_layers": 1, "num_heads": 1, "max_positions": 2}
    few = make_checkpoint("few", tmp_path / "few", options={"plugin": "transformer", **sizes})

    certificate = certify(Trial(draft_of(few), "cpu-float32", Tracer(few)))

    assert certificate.passed
    assert max(case.prompt_length for case in certificate.cases if case.graph == "step") == 1


def test_prompts_cover_what_the_design_names() -> None:
    """One item, two, an odd number, more than one chunk; rows alone, in pairs, odd and many."""
    assert {1, 2} < set(PROMPT_LENGTHS)
    assert any(length % 2 for length in PROMPT_LENGTHS if length > 2)
    assert max(PROMPT_LENGTHS) > 2 * max(chunk for chunk in CHUNKS if chunk)
    assert {1, 2, 7} < set(BATCH_SIZES)


def nudge_a_bias(weights: dict[str, np.ndarray]) -> None:
    """Move one of the head's biases by 3e-5, three times the tolerance."""
    name = next(name for name in weights if name.endswith("output.bias"))
    weights[name][3] += 3e-5


def nudge_a_weight(weights: dict[str, np.ndarray]) -> None:
    """Move one recurrent weight by 1e-2."""
    name = next(name for name, array in weights.items() if array.shape == (1, 3 * HIDDEN, HIDDEN))
    weights[name][0, 0, 0] += 1e-2


def swap_gates(weights: dict[str, np.ndarray]) -> None:
    """Exchange the update gate and the reset gate of every recurrent weight, as a wrong order would."""
    for name, array in weights.items():
        if array.shape == (1, 3 * HIDDEN, HIDDEN):
            z, r, h = np.split(array, 3, axis=1)
            weights[name] = np.concatenate([r, z, h], axis=1)


def poison(weights: dict[str, np.ndarray]) -> None:
    """Make one number of the embedding NaN."""
    name = next(name for name in weights if name.endswith("embedding.weight"))
    weights[name][2, 0] = np.nan


@pytest.mark.parametrize("damage", [nudge_a_bias, nudge_a_weight, swap_gates, poison])
def test_other_weights_are_missed(
    damage: Callable[[dict[str, np.ndarray]], None], traced: TracedStep, export_traced: Export, tmp_path: Path
) -> None:
    """A graph whose weights are not the checkpoint's makes no bundle, and the outputs are named as what differs."""
    weights = {name: array.copy() for name, array in traced.weights.items()}
    damage(weights)

    exported = export_traced(replace(traced, weights=weights))

    assert "outputs against PyTorch" in missed(exported, tmp_path / "models")
    (certificate,) = exported.certificates
    assert not certificate.outputs.max_absolute_error <= 1e-5
    # A certificate that failed can be written and read too, NaN included.
    assert Certificate.model_validate_json(certificate.to_json()).passed is False


def with_other_value(traced: TracedStep, name: str, change: Callable[[GraphBuilder, str], str]) -> TracedStep:
    """Put nodes between a value of the step and the name under which the graphs know it."""
    nodes = []
    for node in traced.nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [f"own.{name}" if value == name else value for value in node.input]
        copy.output[:] = [f"own.{name}" if value == name else value for value in node.output]
        nodes.append(copy)
    op = GraphBuilder("changed")
    changed = change(op, f"own.{name}")
    return replace(traced, nodes=[*nodes, *op.nodes, helper.make_node("Identity", [changed], [name])])


def test_a_graph_whose_rows_touch_each_other_is_missed(
    traced: TracedStep, export_traced: Export, tmp_path: Path
) -> None:
    """A millionth of the batch's mean in every row's output is within the tolerance, but no row stays the same."""

    def leak(op: GraphBuilder, output: str) -> str:
        mean = op.ReduceMean(output, op.constant([0]))
        return op.Add(output, op.Mul(mean, op.constant(1e-6, np.float32)))

    exported = export_traced(with_other_value(traced, "output", leak))

    assert missed(exported, tmp_path / "models") == {"row alone = row in a batch"}


def test_a_state_that_is_not_carried_over_is_missed(traced: TracedStep, export_traced: Export, tmp_path: Path) -> None:
    """A state that fades between runs spoils prompts in chunks, though whole prompts are right."""

    def fade(op: GraphBuilder, state: str) -> str:
        return op.Mul(state, op.constant(0.999, np.float32))

    exported = export_traced(with_other_value(traced, "new_state.hidden.0", fade))
    whole = [case for case in exported.certificates[0].cases if case.chunk is None]

    assert "prompt in chunks = whole" in missed(exported, tmp_path / "models")
    assert all(case.passed for case in whole)


def test_another_rule_of_choice_is_missed(
    traced: TracedStep, export_traced: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sampler that reads the uniform number from the other end draws other tokens; greedy ones stay right."""

    def mirrored(op: GraphBuilder, logits: str, uniform: str, vocabulary_size: int) -> Sampled:
        return add_sampler(op, logits, op.Sub(op.constant(0.9999999, np.float32), uniform), vocabulary_size)

    monkeypatch.setattr(statewise_export.choosing.choice, "add_sampler", mirrored)
    exported = export_traced(traced)

    assert missed(exported, tmp_path / "models") == {"sampled tokens"}


def test_another_draw_of_vectors_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise that is read with the other sign gives other vectors, though all outputs are right."""
    checkpoint = make_checkpoint("lstm-mixture", tmp_path / "checkpoint")

    def mirrored(op: GraphBuilder, output: str, noise: str, head: MixtureHead) -> tuple[str, str]:
        sign = op.constant([1.0] + [-1.0] * head.features, np.float32)
        return add_mixture_sampler(op, output, op.Mul(noise, sign), head)

    monkeypatch.setattr(statewise_export.choosing.choice, "add_mixture_sampler", mirrored)
    exported = export_checkpoint(checkpoint, tmp_path / "models")

    assert missed(exported, tmp_path / "models") == {"sampled vectors"}


def test_a_mixed_step_with_other_weights_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt read beside decoding rows must give what it gives alone; that graph too is certified."""
    checkpoint = make_checkpoint("transformer", tmp_path / "checkpoint")

    def nudged(*arguments: Any) -> TracedStep:
        traced = trace_mixed(*arguments)
        name = next(name for name in traced.weights if name.endswith("layers.0.up.bias"))
        return replace(traced, weights=traced.weights | {name: traced.weights[name] + 1e-3})

    monkeypatch.setattr(statewise_export.graphs.variant, "trace_mixed", nudged)
    exported = export_checkpoint(checkpoint, tmp_path / "models")

    assert missed(exported, tmp_path / "models") == {"outputs against PyTorch", "row alone = row in a batch"}
    assert [case.mixed for case in exported.certificates[0].cases if not case.passed] == [True]


def test_graphs_of_one_variant_share_their_weights(repository: Path) -> None:
    """The file of weights holds each weight once, whichever graphs read it."""
    bundle = open_bundle(find_bundle(repository, "transformer"))
    variant = bundle.variant("cpu-float32")
    checkpoint = load_checkpoint(bundle.folder)
    held = sum(parameter.numel() * 4 for parameter in checkpoint.module.state_dict().values())

    assert variant.mixed is not None
    assert bundle.path(variant.data[0]).stat().st_size < 1.2 * held


def test_a_failed_export_leaves_older_versions_alone(traced: TracedStep, export_traced: Export, tmp_path: Path) -> None:
    """A missed version adds nothing to a good one, and the next good one takes the number that it would have had."""
    weights = {name: array.copy() for name, array in traced.weights.items()}
    swap_gates(weights)

    exported = [export_traced(step) for step in (traced, replace(traced, weights=weights), traced)]

    assert [e.folder.name if e.folder else None for e in exported] == ["1", None, "2"]
    assert sorted(path.name for path in (tmp_path / "models" / "small").iterdir()) == ["1", "2"]
