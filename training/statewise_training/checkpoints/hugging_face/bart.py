"""BART (Lewis et al. 2020), and the encoder-decoders that differ from it in settings only: mBART, Marian, Pegasus."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from statewise_training.checkpoints.hugging_face.family import HuggingFaceConfig, Source
from statewise_training.families.encoder_decoder.config import TransformerEncoderDecoderConfig
from statewise_training.families.encoder_decoder.plugin import TransformerEncoderDecoderPlugin
from statewise_training.families.transformer.positions import sinusoidal_table

_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}

_NEVER = -1e4
"""Logit of tokens that are never generated; representable in half precision."""

_OUTER = {
    "embedding_norm": "layernorm_embedding",
    "final_norm": "layer_norm",
}
_INNER = {
    "attention_norm": "self_attn_layer_norm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "attention_output": "self_attn.out_proj",
    "source_norm": "encoder_attn_layer_norm",
    "source_query": "encoder_attn.q_proj",
    "source_key": "encoder_attn.k_proj",
    "source_value": "encoder_attn.v_proj",
    "source_output": "encoder_attn.out_proj",
    "feed_forward_norm": "final_layer_norm",
    "up": "fc1",
    "down": "fc2",
}


class BartConfig(HuggingFaceConfig):
    """`config.json` with `model_type` bart, mbart, marian or pegasus."""

    plugin: ClassVar[TransformerEncoderDecoderPlugin] = TransformerEncoderDecoderPlugin()
    prefix: ClassVar[str] = "model."
    head: ClassVar[frozenset[str]] = frozenset({"lm_head.weight", "final_logits_bias"})
    not_weights: ClassVar[re.Pattern[str]] = re.compile(r"$^")

    model_type: str
    vocab_size: int
    decoder_vocab_size: int | None = None
    d_model: int
    encoder_layers: int
    decoder_layers: int
    encoder_attention_heads: int
    decoder_attention_heads: int
    encoder_ffn_dim: int
    decoder_ffn_dim: int
    max_position_embeddings: int
    activation_function: Literal["gelu", "gelu_new", "relu", "silu", "swish"] = "gelu"
    scale_embedding: bool = False
    decoder_start_token_id: int = Field(ge=0)
    tie_word_embeddings: bool = True
    share_encoder_decoder_embeddings: bool = True
    bad_words_ids: list[Annotated[list[int], Field(min_length=1, max_length=1)]] | None = None
    """Tokens that are never generated, such as padding, to which Marian models give some probability."""

    @model_validator(mode="after")
    def _sides_are_alike(self) -> BartConfig:
        for key in ("attention_heads", "ffn_dim"):
            sides = getattr(self, f"encoder_{key}"), getattr(self, f"decoder_{key}")
            if sides[0] != sides[1]:
                raise ValueError(
                    f"encoder_{key} {sides[0]} differs from decoder_{key} {sides[1]}; "
                    "encoder and decoder may differ in their layers only"
                )
        return self

    @property
    def start_token(self) -> int:
        """The decoder's first token."""
        return self.decoder_start_token_id

    @property
    def has_learned_positions(self) -> bool:
        """Whether positions are learned, as in BART, rather than sinusoids."""
        return self.model_type in {"bart", "mbart"}

    def convert(self) -> TransformerEncoderDecoderConfig:
        """Convert the settings: all have LayerNorm, biases and a head bias; they differ in where they normalise."""
        return TransformerEncoderDecoderConfig(
            vocabulary_size=self.decoder_vocab_size or self.vocab_size,
            source_vocabulary_size=self.vocab_size,
            max_positions=self.max_position_embeddings,
            max_source_positions=self.max_position_embeddings,
            hidden_size=self.d_model,
            num_layers=self.decoder_layers,
            num_encoder_layers=self.encoder_layers,
            num_heads=self.decoder_attention_heads,
            feed_forward_size=self.decoder_ffn_dim,
            activation=_ACTIVATIONS[self.activation_function],
            norm="layer_norm",
            norm_position="pre" if self.model_type in {"mbart", "pegasus"} else "post",
            # Sinusoids too: transformers does not interleave sines and cosines.
            positions="learned",
            scaled_embeddings=self.scale_embedding,
            embedding_norm=self.has_learned_positions,
            tied_embeddings=self.tie_word_embeddings,
            shared_embeddings=self.share_encoder_decoder_embeddings,
            output_bias=True,
        )

    def named(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Full names, with one embedding for both sides; drops tied and computed tensors that a file may hold."""
        named = super().named(given)
        if self.share_encoder_decoder_embeddings:
            copies = [named.pop(f"model.{side}.embed_tokens.weight", None) for side in ("encoder", "decoder")]
            found = next((copy for copy in copies if copy is not None), None)
            if found is not None:
                named.setdefault("model.shared.weight", found)
        else:
            named.pop("model.shared.weight", None)
        if not self.has_learned_positions:
            named = {name: tensor for name, tensor in named.items() if not name.endswith("embed_positions.weight")}
        # A model saved without its head has no head bias either.
        bias = named.get("final_logits_bias", torch.zeros(1, self.decoder_vocab_size or self.vocab_size)).clone()
        never = [token for (token,) in self.bad_words_ids or [] if token < bias.shape[-1]]
        bias[..., never] = _NEVER
        return {**named, "final_logits_bias": bias}

    def source(self, name: str) -> Source | None:
        """Origin of a tensor; shared ones have one name, and BART's positions begin in the third row."""
        side, _, rest = name.partition(".")
        module, _, kind = rest.rpartition(".")
        if side == "output":
            return Source("final_logits_bias", is_row=True) if kind == "bias" else Source("lm_head.weight")
        if module == "embedding":
            is_shared = self.share_encoder_decoder_embeddings
            return Source("model.shared.weight" if is_shared else f"model.{side}.embed_tokens.weight")
        if module == "position_embedding":
            return Source(f"model.{side}.embed_positions.weight", skipped=2) if self.has_learned_positions else None
        if not module.startswith("layers."):
            return Source(f"model.{side}.{_OUTER[module]}.{kind}")
        _, layer, inner = module.split(".")
        return Source(f"model.{side}.layers.{layer}.{_INNER[inner]}.{kind}")

    def constant(self, name: str, shape: torch.Size) -> Tensor:
        """Sinusoids of Marian and Pegasus: first all sines, then all cosines."""
        table = sinusoidal_table(*shape)
        return torch.cat([table[:, 0::2], table[:, 1::2]], 1)
