"""Encoders, exported: the certificate holds for each family and head, in float32 and quantized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from statewise.plugins import load_plugin
from statewise_export.pipeline import export_checkpoint
from statewise_training.checkpoints.checkpoint import load_checkpoint, save_checkpoint

ENCODERS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "lstm_encoder": (
        {"features": 3, "labels": ("a", "b"), "labels_per": "item", "hidden_size": 128},
        ("cpu-float32", "cpu-int8"),
    ),
    "gru_encoder": ({"vocabulary_size": 61, "head": "embedding", "vector_size": 12}, ("cpu-float32",)),
    "rnn_encoder": ({"features": 3, "head": "value", "value_size": 2, "pooling": "last"}, ("cpu-float32",)),
    "transformer_encoder": (
        {"vocabulary_size": 61, "labels": ("a", "b"), "num_heads": 4, "num_key_value_heads": 2, "head_size": 6},
        ("cpu-float32",),
    ),
}


@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoder_is_certified(family: str, tmp_path: Path) -> None:
    """Against PyTorch on ragged rows of every length, and bit for bit the same alone as in a batch."""
    options, variants = ENCODERS[family]
    plugin = load_plugin(family)
    config = plugin.config_class.model_validate(
        {"hidden_size": 24, "num_layers": 1 + ("float" in variants[-1]), "max_positions": 48, "dropout": 0.1, **options}
    )
    torch.manual_seed(0)
    folder = tmp_path / "checkpoint"
    save_checkpoint(folder, name="encoder", plugin_name=family, config=config, module=plugin.build(config))

    exported = export_checkpoint(load_checkpoint(folder), tmp_path / "models", variants=variants)

    assert exported.folder is not None, exported.certificates
    for certificate in exported.certificates:
        assert certificate.passed
        assert certificate.batch_invariant
        assert [sequences.graph for sequences in certificate.sequences] == ["predict"]
