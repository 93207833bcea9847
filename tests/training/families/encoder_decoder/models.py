"""Small encoder-decoders of every kind."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from statewise.model.spec import ModelSpec
from statewise.plugins import load_plugin

VOCABULARY, MAX_SOURCE = 23, 9

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "transformer": ("transformer_encoder_decoder", {"num_heads": 4, "num_key_value_heads": 2, "num_encoder_layers": 1}),
    "transformer-post": (
        "transformer_encoder_decoder",
        {"num_heads": 2, "norm_position": "post", "positions": "sinusoidal", "scaled_embeddings": True},
    ),
} | {
    f"{cell}-{attention}": (f"{cell}_encoder_decoder", {"attention": attention})
    for cell in ("lstm", "gru")
    for attention in ("none", "luong", "bahdanau")
}


def make(kind: str, **options: Any) -> tuple[nn.Module, ModelSpec]:
    """Build the model of a kind with random weights, in evaluation mode and without gradients, and its description."""
    name, settings = KINDS[kind]
    sizes = {"hidden_size": 32, "num_layers": 2, "max_source_positions": MAX_SOURCE}
    if "source_features" not in options:
        sizes["source_vocabulary_size"] = VOCABULARY
    plugin = load_plugin(name)
    config = plugin.config_class.model_validate({"vocabulary_size": VOCABULARY, **sizes, **settings, **options})
    torch.manual_seed(0)
    return plugin.build(config).eval().requires_grad_(False), plugin.spec(config)
