"""Variants of lower precision: every family in each, certified, served, and refused where they lie too far off."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from statewise.bundles.certificate import check_certificate, read_certificate
from statewise.bundles.figures import TokenDivergence, ValueDivergence
from statewise.bundles.reader import open_bundle
from statewise.model.spec import TokenInput
from statewise.plugins import load_plugin
from statewise.rules.sampling import GREEDY, SamplingParams
from statewise_export.certify.tolerances import limits
from statewise_export.pipeline import export_checkpoint
from statewise_server.engine import Engine, EngineSettings, GenerationRequest
from statewise_server.engine.queue_channel import run_all
from statewise_training.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tests.export.conftest import Statewise

LARGE: dict[str, dict[str, Any]] = {
    "rnn": {"vocabulary_size": 61, "hidden_size": 256},
    "lstm": {"vocabulary_size": 61, "hidden_size": 256},
    "gru": {"features": 3, "hidden_size": 256},
    "transformer": {
        "vocabulary_size": 300,
        "hidden_size": 256,
        "num_layers": 1,
        "num_heads": 4,
        "max_positions": 200,
        "tied_embeddings": True,
    },
}
"""Just large enough to have matrices that are quantized."""


def make_checkpoint(family: str, folder: Path, held_out: Any = None, **options: Any) -> Checkpoint:
    plugin = load_plugin(family)
    config = plugin.config_class.model_validate(LARGE[family] | options)
    torch.manual_seed(1)
    module = plugin.build(config)
    save_checkpoint(folder, name=family, plugin_name=family, config=config, module=module, held_out=held_out)
    return load_checkpoint(folder)


@pytest.fixture(scope="module", params=LARGE)
def bundle_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export a family as cpu-int8 and cpu-int4, without float32 beside them."""
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = make_checkpoint(request.param, folder / "checkpoint")
    exported = export_checkpoint(checkpoint, folder / "models", variants=("cpu-int8", "cpu-int4"))
    assert exported.folder is not None, exported.certificates
    return exported.folder


@pytest.mark.parametrize("variant", ["cpu-int8", "cpu-int4"])
def test_every_family_is_certified(bundle_folder: Path, variant: str) -> None:
    """The certificate says how far from float32 the variant lies, on what, and that rows and chunks do not matter."""
    bundle = open_bundle(bundle_folder)
    certificate = check_certificate(bundle, variant)
    divergence = certificate.divergence
    is_text = isinstance(bundle.manifest.model.input, TokenInput)

    assert certificate.reference == "itself"
    assert certificate.batch_invariant
    assert certificate.chunk_invariant
    assert isinstance(divergence, TokenDivergence if is_text else ValueDivergence)
    assert divergence.held_out == "sampled"
    if isinstance(divergence, TokenDivergence):
        assert 0 < divergence.kl_divergence < 0.01
        assert divergence.num_tokens == 16 * 128
    else:
        assert 0 < divergence.mean_difference < 0.1
    weights = {name: (bundle_folder / f"weights.{name}.data").stat().st_size for name in ("cpu-int8", "cpu-int4")}
    assert weights["cpu-int4"] < weights["cpu-int8"] < (bundle_folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize("variant", ["cpu-int8", "cpu-int4"])
def test_a_request_gets_the_same_alone_and_among_others(bundle_folder: Path, variant: str) -> None:
    """Through the engine, prompts in chunks, rows joining and leaving: bit for bit what each request gets alone."""
    bundle = open_bundle(bundle_folder)
    rng = np.random.default_rng(3)
    spec = bundle.manifest.model.input
    is_text = isinstance(spec, TokenInput)
    requests = [
        GenerationRequest(
            rng.integers(0, spec.vocabulary_size, 1 + 7 * index) if is_text
            else rng.standard_normal((1 + 7 * index, 3)).astype(np.float32),
            SamplingParams(seed=index) if is_text and index % 2 else GREEDY,
            5 + 3 * index,
        )
        for index in range(10)
    ]  # fmt: skip

    def answers(max_rows: int, batches: list[list[GenerationRequest]]) -> list[Any]:
        engine = Engine.load(bundle, variant, EngineSettings(max_rows=max_rows, prefill_chunk=16))
        engine.start()
        try:
            return [np.array(output.items) for batch in batches for output in run_all(engine, batch)]
        finally:
            engine.close()

    for together, alone in zip(answers(4, [requests]), answers(1, [[r] for r in requests]), strict=True):
        np.testing.assert_array_equal(together, alone)


def test_a_variant_too_far_from_float32_makes_no_bundle(tmp_path: Path, statewise: Statewise) -> None:
    """A limit that is exceeded is exit code 1, the table says which and by how much, and nothing is written."""
    make_checkpoint("rnn", tmp_path / "checkpoint")
    command = ("export", tmp_path / "checkpoint", "--to", tmp_path / "models", "--variant", "cpu-int4")

    outcome = statewise(*command, "--max-kl", "1e-9", "--report", "json")
    (certificate,) = json.loads(outcome.stdout)

    assert outcome.code == 1
    assert "cpu-int4" in outcome.error
    assert "lies further from float32 than its limits; leave the variant out" in outcome.error
    assert "--max-kl; no bundle was made" in outcome.error
    assert "divergence from float32" in outcome.stderr
    assert not certificate["passed"]
    assert certificate["limits"]["kl_divergence"] == 1e-9
    assert not list((tmp_path / "models").rglob("manifest.json"))


@pytest.mark.parametrize(("max_kl", "ratio"), [(None, 1.2), (1e-9, 1.2), (1.0, math.e)])
def test_who_allows_more_divergence_allows_more_perplexity(max_kl: float | None, ratio: float) -> None:
    """Else a variant that --max-kl lets pass would fail by the ratio, for which there is no option."""
    allowed = limits("int4", max_kl)

    assert allowed is not None
    assert allowed.perplexity_ratio == pytest.approx(ratio)
    assert allowed.kl_divergence == (0.15 if max_kl is None else max_kl)


def test_weights_with_absurd_outliers_are_refused(tmp_path: Path) -> None:
    """One huge number in every block leaves 4 bits nothing for the others; the model's own limits notice."""
    checkpoint = make_checkpoint("transformer", tmp_path / "checkpoint", tied_embeddings=False)
    with torch.no_grad():
        checkpoint.module.layers[0].up.weight[:, ::32] *= 3000
        checkpoint.module.output.weight *= 30

    exported = export_checkpoint(checkpoint, tmp_path / "models", variants=("cpu-float32", "cpu-int4"))

    assert exported.folder is None
    assert [(c.variant, c.passed) for c in exported.certificates] == [("cpu-float32", True), ("cpu-int4", False)]
    assert not exported.certificates[1].is_close


def test_held_out_data_go_along(tmp_path: Path, statewise: Statewise) -> None:
    """Items that the checkpoint kept are measured on, sealed into the bundle, and measured on again by `verify`."""
    held_out = np.random.default_rng(0).integers(0, 61, 600)
    checkpoint = make_checkpoint("rnn", tmp_path / "checkpoint", held_out)
    np.testing.assert_array_equal(checkpoint.held_out(), held_out)

    exported = export_checkpoint(checkpoint, tmp_path / "models", variants=("cpu-int8",), max_kl=0.5)
    assert exported.folder is not None
    stored = read_certificate(open_bundle(exported.folder), "cpu-int8")
    outcome = statewise("verify", exported.folder, "--report", "json")
    remade = json.loads(outcome.stdout)[0]

    assert outcome.code == 0, outcome.stderr
    assert "divergence from float32" in outcome.stderr
    assert isinstance(stored.divergence, TokenDivergence)
    assert remade["divergence"] == stored.divergence.model_dump()
    assert (stored.divergence.held_out, stored.divergence.num_tokens) == ("data", 2 * 256)
    assert remade["limits"]["kl_divergence"] == 0.5


def test_held_out_items_that_the_model_cannot_read_are_refused(tmp_path: Path, statewise: Statewise) -> None:
    """Token ids beyond the vocabulary are named, with the file that they are in."""
    make_checkpoint("rnn", tmp_path / "checkpoint", np.array([1, 2, 61]))

    outcome = statewise("export", tmp_path / "checkpoint", "--to", tmp_path / "models")

    assert outcome.code == 2
    assert "heldout.safetensors" in outcome.error


def test_an_unknown_variant_is_refused_at_once(tmp_path: Path, statewise: Statewise) -> None:
    """Before anything is loaded, with the names that there are."""
    outcome = statewise("export", tmp_path / "none", "--to", tmp_path / "models", "--variant", "cpu-int3")

    assert outcome.code == 2
    assert outcome.error.startswith("--variant cpu-int3: there is no such variant; choose from cpu-float32, cpu-int8")


def test_a_model_too_small_for_it_is_told(checkpoint: Path, tmp_path: Path, statewise: Statewise) -> None:
    """Quantizing a model of small matrices would gain nothing, and the message says so."""
    outcome = statewise("export", checkpoint, "--to", tmp_path / "models", "--variant", "cpu-int8")

    assert outcome.code == 2
    assert "export it as cpu-float32" in outcome.error


def test_help_says_what_each_variant_is_for(statewise: Statewise) -> None:
    """The help of `export` names every variant and its purpose."""
    outcome = statewise("export", "--help")
    text = " ".join(outcome.stdout.replace("│", " ").split())

    for name in ("cpu-float32", "cpu-int8", "cpu-int4"):
        assert f"{name}:" in text
