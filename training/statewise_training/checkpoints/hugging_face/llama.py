"""Llama (Touvron et al. 2023), and the families that differ from it in settings only: Mistral and Qwen2."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import Field

from statewise_training.checkpoints.hugging_face.family import HuggingFaceConfig, Source
from statewise_training.checkpoints.hugging_face.rotations import Rotations
from statewise_training.families.transformer.config import TransformerConfig
from statewise_training.families.transformer.plugin import TransformerPlugin

_OUTER = {"embedding": "model.embed_tokens", "final_norm": "model.norm", "output": "lm_head"}
_INNER = {
    "attention_norm": "input_layernorm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "attention_output": "self_attn.o_proj",
    "feed_forward_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


class LlamaConfig(HuggingFaceConfig):
    """`config.json` with `model_type` llama, mistral or qwen2."""

    plugin: ClassVar[TransformerPlugin] = TransformerPlugin()
    prefix: ClassVar[str] = "model."
    not_weights: ClassVar[re.Pattern[str]] = re.compile(r"\.rotary_emb\.inv_freq$")

    model_type: str
    max_position_embeddings: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: Literal["silu", "swish"] = "silu"
    rms_norm_eps: float = 1e-6
    rope_parameters: Rotations | None = None
    rope_scaling: Rotations | None = None
    rope_theta: float = Field(default=10_000.0, gt=1)
    partial_rotary_factor: float = Field(default=1.0, ge=1.0, le=1.0)
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = 4096
    use_sliding_window: bool = False
    max_window_layers: int = 28
    """Qwen2: number of layers before the first one with a window, where `layer_types` is absent."""
    layer_types: list[str] | None = None

    @property
    def window(self) -> int | None:
        """Attention window: none in Llama, optional in Mistral; in Qwen2 if switched on and a layer has it."""
        is_used = self.model_type == "mistral" or (
            self.model_type == "qwen2" and self.use_sliding_window and self._has_window_layers
        )
        return self.sliding_window if is_used else None

    @property
    def _has_window_layers(self) -> bool:
        if self.layer_types is not None:
            return "sliding_attention" in self.layer_types
        return self.max_window_layers < self.num_hidden_layers

    def convert(self) -> TransformerConfig:
        """Convert: rotary positions, pre-RMSNorm, SwiGLU, grouped key/value heads."""
        rotations = self.rope_scaling or self.rope_parameters or Rotations()
        base = rotations.rope_theta or self.rope_theta
        head_size = self.head_dim or self.hidden_size // max(self.num_attention_heads, 1)
        return TransformerConfig(
            vocabulary_size=self.vocab_size,
            max_positions=self.max_position_embeddings,
            hidden_size=self.hidden_size,
            num_layers=self.num_hidden_layers,
            num_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_size=self.head_dim,
            feed_forward_size=self.intermediate_size,
            activation="swiglu",
            norm="rms_norm",
            norm_epsilon=self.rms_norm_eps,
            positions="rotary",
            rotary_base=base,
            rotary_divisors=rotations.divisors(head_size, base),
            bias=self.attention_bias or self.mlp_bias or self.model_type == "qwen2",
            tied_embeddings=self.tie_word_embeddings,
        )

    def source(self, name: str) -> Source | None:
        """Origin of a tensor: only names differ; if some linear layers have a bias, the others get zeros."""
        if not name.startswith("layers."):
            module, _, kind = name.partition(".")
            return Source(f"{_OUTER[module]}.{kind}")
        _, layer, module, kind = name.split(".")
        if kind == "bias" and not self._has_bias(module):
            return None
        return Source(f"model.layers.{layer}.{_INNER[module]}.{kind}")

    def _has_bias(self, module: str) -> bool:
        if module in ("gate", "up", "down"):
            return self.model_type == "llama" and self.mlp_bias
        if self.model_type == "qwen2":
            return module != "attention_output"
        return self.model_type == "llama" and self.attention_bias
