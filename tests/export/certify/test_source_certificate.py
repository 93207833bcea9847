"""The certificate of models with a source, and what it would catch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from statewise.bundles.reader import open_bundle
from statewise_export.certify import certify
from statewise_export.certify import trial as trial_module
from statewise_export.certify.trial import Trial
from statewise_export.graphs.variant import Tracer
from statewise_export.pipeline import export_checkpoint
from statewise_server.runtime.steps.runner import Runner
from tests.models import make_checkpoint

LONGEST = 37

FAMILIES: dict[str, dict[str, Any]] = {
    "transformer": {"plugin": "transformer_encoder_decoder", "num_heads": 2, "num_layers": 1, "max_positions": 48},
    "luong": {"plugin": "lstm_encoder_decoder", "num_layers": 1},
    "no attention, sources of vectors": {"plugin": "gru_encoder_decoder", "attention": "none", "source_features": 2},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_encoder_decoder_is_certified_with_sources_of_every_length(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sources of one item, odd numbers and the most there may be share batches, and every comparison passes."""
    monkeypatch.setattr(trial_module, "NUM_GENERATED", 30)
    options = {"vocabulary_size": 31, "hidden_size": 16, "max_source_positions": LONGEST, **FAMILIES[family]}
    if "source_features" not in options:
        options["source_vocabulary_size"] = 31
    checkpoint = make_checkpoint("model", tmp_path / "model", options=options)

    exported = export_checkpoint(checkpoint, tmp_path)

    (certificate,) = exported.certificates
    assert certificate.passed
    assert certificate.batch_invariant
    assert certificate.greedy_tokens is not None
    assert certificate.greedy_tokens.equal == certificate.greedy_tokens.compared
    assert {case.source_length for case in certificate.cases if case.batch_size >= 7} == {LONGEST}
    assert {1, 7, 17} <= {case.source_length for case in certificate.cases if case.batch_size == 1}
    assert exported.folder is not None
    if family == "transformer":
        _check_that_damage_is_found(checkpoint, exported.folder, monkeypatch)


def _check_that_damage_is_found(checkpoint: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime that gives rows the sources of others, or counts one item too many, is not certified."""
    encode = Runner.encode

    def swapped(runner: Runner, rows: slice, sources: Any) -> None:
        encode(runner, rows, list(sources)[::-1])

    def padded(runner: Runner, rows: slice, sources: Any) -> None:
        encode(runner, rows, [np.append(source[: LONGEST - 1], 0) for source in sources])

    for fault in (swapped, padded):
        monkeypatch.setattr(Runner, "encode", fault)
        remade = certify.certify(Trial(open_bundle(folder), "cpu-float32", Tracer(checkpoint)))
        assert not remade.passed
