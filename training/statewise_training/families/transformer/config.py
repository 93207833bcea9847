"""Configurations of Transformers: the layers of decoders and encoders alike, and a decoder's own settings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, model_validator

from statewise_training.families.shared.items import InputConfig, ItemConfig


class TransformerLayersConfig(InputConfig):
    """Settings common to decoders and encoders."""

    max_positions: int = Field(default=512, ge=2, le=1 << 20)
    """Longest sequence; for a decoder, prompt and output together."""
    hidden_size: int = Field(default=256, ge=1)
    num_layers: int = Field(default=4, ge=1, le=256)
    num_heads: int = Field(default=4, ge=1)
    """Query heads."""
    num_key_value_heads: int | None = Field(default=None, ge=1)
    """Key/value heads, each shared by a group of query heads (Ainslie et al. 2023); `num_heads` where absent."""
    head_size: int | None = Field(default=None, ge=1)
    """Width of a head; `hidden_size / num_heads` where absent. A decoder needs a multiple of 8."""
    feed_forward_size: int | None = Field(default=None, ge=1)
    """Width of the feed-forward layer; four times `hidden_size` where absent."""
    activation: Literal["gelu", "gelu_tanh", "relu", "silu", "swiglu"] = "gelu"
    norm: Literal["layer_norm", "rms_norm"] = "layer_norm"
    norm_position: Literal["pre", "post"] = "pre"
    norm_epsilon: float = Field(default=1e-5, gt=0)
    positions: Literal["sinusoidal", "learned", "rotary", "none"] = "rotary"
    rotary_base: float = Field(default=10_000.0, gt=1)
    rotary_divisors: tuple[PositiveFloat, ...] | None = None
    """Divisors of the rotary angles, `head_size / 2` numbers, one per pair of a head: they stretch positions for longer
    sequences than a model was first trained on; none where absent."""
    bias: bool = True
    """Give the linear layers and LayerNorm biases."""
    scaled_embeddings: bool = False
    """Multiply the embedding by sqrt(hidden_size) before adding positions (Vaswani et al. 2017, section 3.4)."""
    embedding_norm: bool = False
    """Normalise the first layer's input."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout probability for embeddings, attention weights and residual branches, in training only."""

    @model_validator(mode="after")
    def _heads_divide(self) -> TransformerLayersConfig:
        if self.head_size is None and self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of num_heads {self.num_heads}")
        if self.num_heads % self.key_value_heads:
            raise ValueError(f"num_heads {self.num_heads} is no multiple of num_key_value_heads {self.key_value_heads}")
        if self.positions == "rotary" and self.head_width % 2:
            raise ValueError(f"rotary positions need an even head size, got {self.head_width}; set head_size")
        if self.rotary_divisors is not None and len(self.rotary_divisors) != self.head_width // 2:
            raise ValueError(
                f"rotary_divisors must be {self.head_width // 2} numbers, half the head size; "
                f"got {len(self.rotary_divisors)}"
            )
        return self

    @property
    def head_width(self) -> int:
        """Width of one head."""
        return self.head_size or self.hidden_size // self.num_heads

    @property
    def key_value_heads(self) -> int:
        """Number of key/value heads."""
        return self.num_key_value_heads or self.num_heads

    @property
    def feed_forward_width(self) -> int:
        """Width of the feed-forward layer."""
        return self.feed_forward_size or 4 * self.hidden_size


class TransformerConfig(TransformerLayersConfig, ItemConfig):
    """Configuration of a decoder."""

    tied_embeddings: bool = False
    """Use the embedding's matrix in the head (Press and Wolf 2017)."""
    output_bias: bool = False
    """Give the head a bias."""

    @model_validator(mode="after")
    def _fits_a_decoder(self) -> TransformerConfig:
        if self.features is not None and self.tied_embeddings:
            raise ValueError("tied_embeddings needs token input (vocabulary_size)")
        if self.head_width % 8:
            raise ValueError(
                f"ONNX Runtime's attention needs a head size that is a multiple of 8, got {self.head_width}; "
                "change hidden_size or num_heads, or set head_size"
            )
        return self
