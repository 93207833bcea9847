"""Plugins `transformer_encoder_decoder`, `lstm_encoder_decoder` and `gru_encoder_decoder`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from statewise.model.spec import ModelSpec, StateSpec
from statewise_training.families.encoder_decoder.config import EncoderDecoderConfig, EncoderDecoderPlugin
from statewise_training.families.encoder_decoder.recurrent import RecurrentEncoderDecoder
from statewise_training.families.encoder_decoder.transformer import TransformerEncoderDecoder
from statewise_training.families.recurrent.module import Cell
from statewise_training.families.recurrent.plugin import RecurrentConfig
from statewise_training.families.transformer.plugin import TransformerConfig


class TransformerEncoderDecoderConfig(EncoderDecoderConfig, TransformerConfig):
    """Configuration of encoder and decoder, which differ in their depth at most."""

    num_encoder_layers: int | None = Field(default=None, ge=1, le=256)
    """Layers of the encoder; `num_layers`, those of the decoder, where absent."""

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


class TransformerEncoderDecoderPlugin(EncoderDecoderPlugin[TransformerEncoderDecoderConfig]):
    """Encoder-decoder Transformers (Vaswani et al. 2017), from that paper's shape to BART's."""

    name = "transformer_encoder_decoder"
    config_class = TransformerEncoderDecoderConfig

    def spec(self, config: TransformerEncoderDecoderConfig) -> ModelSpec:
        """The number of items so far, each layer's caches, and its keys and values of the source."""
        heads, size = config.key_value_heads, config.head_width
        parts = [(layer, part) for layer in range(config.num_layers) for part in ("key", "value")]
        caches = [
            StateSpec(name=f"{part}.{layer}", kind="cache", shape=("row", heads, "position", size))
            for layer, part in parts
        ]
        memory = [
            StateSpec(name=f"source_{part}.{layer}", kind="memory", shape=("row", heads, "source", size))
            for layer, part in parts
        ]
        position = StateSpec(name="position", dtype="int64", shape=("row",))
        length = StateSpec(name="source_length", kind="memory", dtype="int64", shape=("row",))
        return config.model_spec((position, *caches, *memory, length), config.max_positions)

    def build(self, config: TransformerEncoderDecoderConfig) -> TransformerEncoderDecoder:
        """The step function, freshly initialised."""
        return TransformerEncoderDecoder(config)


class RecurrentEncoderDecoderConfig(EncoderDecoderConfig, RecurrentConfig):
    """Configuration of encoder and decoder, as deep as each other; either direction of the encoder is half as wide."""

    attention: Literal["bahdanau", "luong", "none"] = "bahdanau"
    """What the decoder sees of the source beside the encoder's last state, with which it begins."""

    @model_validator(mode="after")
    def _directions_are_even(self) -> RecurrentEncoderDecoderConfig:
        if self.hidden_size % 2:
            raise ValueError(f"hidden_size must be even, half of it for each direction, got {self.hidden_size}")
        return self


class RecurrentEncoderDecoderPlugin(EncoderDecoderPlugin[RecurrentEncoderDecoderConfig]):
    """What the recurrent families share; each adds its name and its cell."""

    config_class = RecurrentEncoderDecoderConfig
    cell: ClassVar[Cell]

    def spec(self, config: RecurrentEncoderDecoderConfig) -> ModelSpec:
        """Each layer's vectors, and what attention looks at."""
        vectors = ("hidden", "cell") if self.cell == "lstm" else ("hidden",)
        layers = [
            StateSpec(name=f"{vector}.{layer}", shape=("row", config.hidden_size))
            for layer in range(config.num_layers)
            for vector in vectors
        ]
        parts = {"luong": ("source",), "bahdanau": ("source_key", "source"), "none": ()}[config.attention]
        memory = [StateSpec(name=part, kind="memory", shape=("row", "source", config.hidden_size)) for part in parts]
        length = [StateSpec(name="source_length", kind="memory", dtype="int64", shape=("row",))] if memory else []
        return config.model_spec((*layers, *memory, *length))

    def build(self, config: RecurrentEncoderDecoderConfig) -> RecurrentEncoderDecoder:
        """The step function, initialised as torch.nn does."""
        return RecurrentEncoderDecoder(self.cell, config)


class LSTMEncoderDecoderPlugin(RecurrentEncoderDecoderPlugin):
    """Long short-term memory (torch.nn.LSTM) on both sides."""

    name = "lstm_encoder_decoder"
    cell = "lstm"


class GRUEncoderDecoderPlugin(RecurrentEncoderDecoderPlugin):
    """Gated recurrent units (torch.nn.GRU) on both sides."""

    name = "gru_encoder_decoder"
    cell = "gru"
