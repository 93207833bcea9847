"""GPT-2 (Radford et al. 2019)."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from statewise_training.checkpoints.hugging_face.family import HuggingFaceConfig, Source
from statewise_training.families.transformer.config import TransformerConfig
from statewise_training.families.transformer.plugin import TransformerPlugin

_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
}

_OUTER = {
    "embedding": "transformer.wte",
    "position_embedding": "transformer.wpe",
    "final_norm": "transformer.ln_f",
    "output": "lm_head",
}
_NORMS = {"attention_norm": "ln_1", "feed_forward_norm": "ln_2"}
_LINEARS = {"attention_output": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"}
_JOINT = ("query", "key", "value")


class GPT2Config(HuggingFaceConfig):
    """`config.json` with `model_type: gpt2`."""

    plugin: ClassVar[TransformerPlugin] = TransformerPlugin()
    prefix: ClassVar[str] = "transformer."
    not_weights: ClassVar[re.Pattern[str]] = re.compile(r"\.attn\.(bias|masked_bias)$")

    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int | None = None
    activation_function: Literal["gelu_new", "gelu_pytorch_tanh", "gelu", "relu", "silu"] = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = True
    scale_attn_weights: Literal[True] = True
    scale_attn_by_inverse_layer_idx: Literal[False] = False
    add_cross_attention: Literal[False] = False

    def convert(self) -> TransformerConfig:
        """Convert: learned positions, pre-LayerNorm, biases everywhere."""
        return TransformerConfig(
            vocabulary_size=self.vocab_size,
            max_positions=self.n_positions,
            hidden_size=self.n_embd,
            num_layers=self.n_layer,
            num_heads=self.n_head,
            feed_forward_size=self.n_inner,
            activation=_ACTIVATIONS[self.activation_function],
            norm="layer_norm",
            norm_epsilon=self.layer_norm_epsilon,
            positions="learned",
            bias=True,
            tied_embeddings=self.tie_word_embeddings,
        )

    def source(self, name: str) -> Source:
        """Origin of a tensor: linear layers are transposed; query, key and value are one matrix."""
        if not name.startswith("layers."):
            module, _, kind = name.partition(".")
            return Source(f"{_OUTER[module]}.{kind}")
        _, layer, module, kind = name.split(".")
        stem = f"transformer.h.{layer}"
        if module in _NORMS:
            return Source(f"{stem}.{_NORMS[module]}.{kind}")
        if module in _JOINT:
            return Source(f"{stem}.attn.c_attn.{kind}", is_transposed=True, part=_JOINT.index(module))
        return Source(f"{stem}.{_LINEARS[module]}.{kind}", is_transposed=True)
