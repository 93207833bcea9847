"""The certificate of graphs that read whole sequences: what it compares, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

import statewise_export.graphs.variant
from statewise.bundles.certificate import Certificate, check_certificate
from statewise.bundles.figures import AnswerDivergence, LabelDivergence
from statewise.bundles.reader import Bundle, find_bundle, open_bundle
from statewise.model.spec import EmbeddingHead, ModelSpec
from statewise.plugins import load_plugin
from statewise_export.certify.sequences.graphs import batch_lengths
from statewise_export.certify.trial import BATCH_SIZES
from statewise_export.pipeline import Exported, export_checkpoint, verify_bundle
from statewise_export.report import ReportFormat, render
from statewise_export.trace.trace import trace_prediction
from statewise_server.runtime.one_shot import OneShotRunner, bucket_of
from statewise_training.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from statewise_training.families.recurrent.module import RecurrentModule
from statewise_training.families.recurrent.plugin import GRUPlugin
from tests.models import MODELS

TOKENS = {"vocabulary_size": 61, "max_positions": 70, "labels": ("a", "b", "c")}
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "tags": ("transformer_encoder", TOKENS | {"labels_per": "item", "hidden_size": 32, "num_heads": 4}),
    "label": ("lstm_encoder", TOKENS | {"hidden_size": 24, "num_layers": 1}),
    "value": ("rnn_encoder", {"features": 3, "max_positions": 20, "head": "value", "value_size": 2, "hidden_size": 16}),
}


def make(family: str, settings: dict[str, Any], folder: Path) -> Checkpoint:
    plugin = load_plugin(family)
    config = plugin.config_class.model_validate(settings)
    torch.manual_seed(1)
    save_checkpoint(folder, name="small", plugin_name=family, config=config, module=plugin.build(config))
    return load_checkpoint(folder)


def missed(exported: Exported) -> set[str]:
    assert exported.folder is None
    (certificate,) = exported.certificates
    return {c.name for c in certificate.checks if not c.passed and not c.name.startswith("served: ")}


@pytest.mark.parametrize("max_positions", [None, 1, 5, 16, 17, 64, 65, 100, 129, 512, 5000])
def test_batches_go_to_both_borders_of_their_bucket(max_positions: int | None) -> None:
    """Every batch is of one bucket; one of sixteen, seven and pairs; the last one is near the model's limit."""
    lists = batch_lengths(max_positions)

    for lengths in lists:
        assert len({bucket_of(length, max_positions) for length in lengths}) == 1
        assert max_positions is None or max(lengths) <= max_positions
    everything = {length for lengths in lists for length in lengths}
    if max_positions is None:
        assert {1, 2, 7, 16, 17, 32, 33, 64, 65, 128} <= everything
        assert {1, 2, 7, 16} == set(BATCH_SIZES)
        assert {size for size in BATCH_SIZES if size > 1} <= set(map(len, lists))
    else:
        assert min(max_positions, 2047) in everything


@pytest.mark.parametrize("name", [name for name, options in MODELS.items() if "features" not in options])
def test_every_model_of_tokens_scores(name: str, repository: Path) -> None:
    """Beside its steps each has a certified graph of log-probabilities, which shares their weights."""
    bundle = open_bundle(find_bundle(repository, name))
    certificate = check_certificate(bundle, "cpu-float32")

    (agreement,) = certificate.sequences
    assert agreement.graph == "score"
    assert agreement.batch_invariant
    assert agreement.outputs.max_absolute_error <= 1e-5
    assert agreement.outputs.positions_compared > 500
    assert {case.batch_size for case in certificate.cases if case.graph == "score"} == set(BATCH_SIZES)
    assert places_of_weights(bundle, "score") <= places_of_weights(bundle, "step")


def places_of_weights(bundle: Bundle, graph: str) -> set[tuple[str, ...]]:
    """File, offset and length of every weight that lies outside the graph."""
    model = onnx.load(str(bundle.folder / f"{graph}.cpu-float32.onnx"), load_external_data=False)
    outside = [weight for weight in model.graph.initializer if weight.external_data]
    return {tuple(entry.value for entry in weight.external_data) for weight in outside}


def test_values_are_not_scored(repository: Path) -> None:
    """A real vector that a model predicts has no probability, so there is no such graph."""
    variant = open_bundle(find_bundle(repository, "gru-series")).variant("cpu-float32")

    assert variant.one_shot_graphs == {}


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_are_certified_and_verified(name: str, tmp_path: Path) -> None:
    """Labels, tags and values are PyTorch's, and a sequence alone is bit for bit what it is in company."""
    exported = export_checkpoint(make(*ENCODERS[name], tmp_path / "checkpoint"), tmp_path / "models")

    assert exported.folder is not None, render(exported.certificates, ReportFormat.MARKDOWN)
    certificate = check_certificate(open_bundle(exported.folder), "cpu-float32")
    (agreement,) = certificate.sequences
    assert (agreement.graph, agreement.batch_invariant) == ("predict", True)
    assert certificate.outputs == agreement.outputs
    assert (agreement.labels is not None) == (name != "value")
    assert agreement.labels is None or agreement.labels.equal == agreement.labels.compared > 60
    if name == "tags":
        (verified,) = verify_bundle(exported.folder).values()
        assert verified.remade.passed
        assert "predict: labels" in render([certificate], ReportFormat.JUNIT)


def test_other_weights_are_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that is off by three times the tolerance makes no bundle."""

    def nudged(*arguments: Any) -> Any:
        traced = trace_prediction(*arguments)
        name = next(name for name in traced.weights if name.endswith("output.bias"))
        return replace(traced, weights=traced.weights | {name: traced.weights[name] + np.float32(3e-4)})

    monkeypatch.setattr(statewise_export.graphs.variant, "trace_prediction", nudged)
    exported = export_checkpoint(make(*ENCODERS["label"], tmp_path / "checkpoint"), tmp_path / "models")

    assert missed(exported) == {"predict: against PyTorch"}
    (certificate,) = exported.certificates
    assert Certificate.model_validate_json(certificate.to_json()) == certificate


@pytest.mark.parametrize(
    ("head", "kind"), [({"labels": ("a", "b", "c")}, LabelDivergence), ({"head": "embedding"}, AnswerDivergence)]
)
def test_quantized_encoders_are_held_against_float32(head: dict[str, Any], kind: type, tmp_path: Path) -> None:
    """In 8 bits the answers' divergence from PyTorch is within the limits, and company still changes no bit."""
    settings = {"vocabulary_size": 61, "max_positions": 40, "hidden_size": 256, "num_layers": 1} | head
    exported = export_checkpoint(
        make("gru_encoder", settings, tmp_path / "checkpoint"), tmp_path / "models", variants=["cpu-int8"]
    )

    assert exported.folder is not None, render(exported.certificates, ReportFormat.MARKDOWN)
    (certificate,) = exported.certificates
    assert certificate.reference == "itself"
    assert isinstance(certificate.divergence, kind)
    assert certificate.sequences[0].divergence == certificate.divergence
    assert certificate.batch_invariant
    assert any(check.name == "predict: divergence from float32" for check in certificate.checks)


class EmbeddingModule(RecurrentModule):
    """A language model that also stands for a whole text by its last hidden vector."""

    def embed(self, items: Tensor, lengths: Tensor) -> Tensor:
        zeros = torch.zeros(items.shape[0], self.rnn.hidden_size)
        return self(items, lengths, (zeros,))[1][0]


class EmbeddingPlugin(GRUPlugin):
    """The GRU family with an embedding."""

    def spec(self, config: Any) -> ModelSpec:
        return super().spec(config).model_copy(update={"embedding": EmbeddingHead(size=config.hidden_size)})

    def build(self, config: Any) -> RecurrentModule:
        module = super().build(config)
        module.__class__ = EmbeddingModule
        return module


def test_a_model_that_generates_may_also_embed(tmp_path: Path) -> None:
    """It has all three kinds of graphs, each certified; its embedding is the module's."""
    plain = make("gru", {"vocabulary_size": 61, "hidden_size": 16}, tmp_path / "checkpoint")
    plugin = EmbeddingPlugin()
    module = plugin.build(plain.config).eval()
    exported = export_checkpoint(replace(plain, plugin=plugin, module=module), tmp_path / "models")

    assert exported.folder is not None, render(exported.certificates, ReportFormat.MARKDOWN)
    bundle = open_bundle(exported.folder)
    assert [agreement.graph for agreement in exported.certificates[0].sequences] == ["predict", "score"]
    row = np.arange(7)
    runner = OneShotRunner.load(bundle, "cpu-float32", "predict")
    (answer,) = runner.run_rows([row], 16)
    with torch.inference_mode():
        expected = module.embed(torch.from_numpy(row)[None], torch.tensor([7]))[0].numpy()
    np.testing.assert_allclose(answer["output"], expected, atol=1e-6)
