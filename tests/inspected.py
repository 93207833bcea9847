"""Models with something to show, exported once for all tests: `attentive` reads text, `gated` two real numbers."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from statewise.bundles.manifest import SpecialTokens
from statewise.plugins import load_plugin
from statewise_export.pipeline import export_checkpoint
from statewise_training.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from statewise_training.data.tokenizers import byte_level
from tests.small_bundles import write_bundle

NUM_HEADS, MAX_POSITIONS = 2, 64
START = 0

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "attentive": (
        "transformer",
        {
            "vocabulary_size": 258,
            "hidden_size": 16,
            "num_layers": 1,
            "num_heads": NUM_HEADS,
            "max_positions": MAX_POSITIONS,
        },
    ),
    "gated": ("lstm", {"features": 2, "hidden_size": 8, "num_layers": 2}),
}


@cache
def checkpoint_of(name: str) -> Checkpoint:
    """A checkpoint with weights large enough that attention is sharp and gates move."""
    folder = Path(tempfile.mkdtemp())
    plugin_name, options = MODELS[name]
    plugin = load_plugin(plugin_name)
    config = plugin.config_class.model_validate(options)
    torch.manual_seed(4)
    module = plugin.build(config)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    reads_text = "vocabulary_size" in options
    byte_level().save(str(folder / "tokenizer.json"))
    save_checkpoint(
        folder / name,
        name=name,
        plugin_name=plugin_name,
        config=config,
        module=module,
        special_tokens=SpecialTokens(start=START, end=1) if reads_text else SpecialTokens(),
        tokenizer_file=folder / "tokenizer.json" if reads_text else None,
    )
    return load_checkpoint(folder / name)


@cache
def repository() -> Path:
    """Both models, exported with `inspect`, and `sum`, which shows nothing."""
    folder = Path(tempfile.mkdtemp())
    for name in MODELS:
        exported = export_checkpoint(checkpoint_of(name), folder, inspect=True)
        assert exported.folder is not None, exported.certificates
    write_bundle(folder, "sum")
    return folder
