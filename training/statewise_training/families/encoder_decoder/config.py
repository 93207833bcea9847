"""Configurations of the encoder-decoder families."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from statewise.model.spec import InputSpec, ModelSpec, RealInput, StateSpec, TokenInput
from statewise_training.families.recurrent.config import RecurrentConfig
from statewise_training.families.shared.items import ItemConfig
from statewise_training.families.transformer.config import TransformerConfig


class EncoderDecoderConfig(ItemConfig):
    """Base of the encoder-decoder configurations: the sources."""

    source_vocabulary_size: int | None = Field(default=None, ge=2)
    """Sources of tokens: number of token ids. Filled in from the tokenizer."""
    source_features: int | None = Field(default=None, ge=1)
    """Sources of real vectors: numbers per item. Filled in from the data."""
    max_source_positions: int = Field(default=128, ge=1, le=1 << 20)
    """Longest source. Each row holds memory for this many items, and attention to it costs accordingly."""
    shared_embeddings: bool = True
    """Use one embedding for sources and targets; both must be tokens of one vocabulary."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the target's probability that is spread over the vocabulary, in training only (Szegedy et al. 2016)."""

    @model_validator(mode="after")
    def _one_kind_of_source(self) -> EncoderDecoderConfig:
        if (self.source_vocabulary_size is None) == (self.source_features is None):
            raise ValueError("give exactly one of source_vocabulary_size (tokens) and source_features (real vectors)")
        if self.label_smoothing and self.vocabulary_size is None:
            raise ValueError("label_smoothing needs targets of tokens (vocabulary_size)")
        return self

    @model_validator(mode="after")
    def _embeddings_fit(self) -> EncoderDecoderConfig:
        if self.shares_embedding and self.source_vocabulary_size != self.vocabulary_size:
            raise ValueError(
                f"shared_embeddings needs one vocabulary, got {self.source_vocabulary_size} source tokens and "
                f"{self.vocabulary_size} target tokens; set it to false"
            )
        return self

    @property
    def shares_embedding(self) -> bool:
        """Whether encoder and decoder use one embedding."""
        both_tokens = self.source_vocabulary_size is not None and self.vocabulary_size is not None
        return self.shared_embeddings and both_tokens

    @property
    def source(self) -> InputSpec:
        """The items of the sources."""
        if self.source_vocabulary_size is not None:
            return TokenInput(vocabulary_size=self.source_vocabulary_size)
        return RealInput(features=self.source_features or 0)

    def model_spec(self, state: tuple[StateSpec, ...], max_positions: int | None = None, **others: object) -> ModelSpec:
        """Return the specification of a model that reads a source, then generates item by item."""
        source = {"source": self.source, "max_source_positions": self.max_source_positions}
        return super().model_spec(state, max_positions, **source, **others)


class TransformerEncoderDecoderConfig(EncoderDecoderConfig, TransformerConfig):
    """Configuration of encoder and decoder, which share all settings but the depth."""

    num_encoder_layers: int | None = Field(default=None, ge=1, le=256)
    """Layers of the encoder; as many as the decoder's `num_layers` where absent."""

    @property
    def encoder(self) -> TransformerEncoderDecoderConfig:
        """The same settings, for the encoder's items and layers."""
        return self.model_copy(
            update={
                "vocabulary_size": self.source_vocabulary_size,
                "features": self.source_features,
                "max_positions": self.max_source_positions,
                "num_layers": self.num_encoder_layers or self.num_layers,
            }
        )


class RecurrentEncoderDecoderConfig(EncoderDecoderConfig, RecurrentConfig):
    """Configuration of encoder and decoder of equal depth; each direction of the encoder is half as wide."""

    attention: Literal["bahdanau", "luong", "none"] = "bahdanau"
    """Attention to the source; `none` leaves only the encoder's last state, the decoder's first."""

    @model_validator(mode="after")
    def _directions_are_even(self) -> RecurrentEncoderDecoderConfig:
        if self.hidden_size % 2:
            raise ValueError(f"hidden_size must be even, half of it for each direction, got {self.hidden_size}")
        return self
