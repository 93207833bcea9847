"""Plugins `transformer_encoder_decoder`, `lstm_encoder_decoder` and `gru_encoder_decoder`."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from statewise.errors import ConfigError
from statewise.model.spec import ModelSpec, StateSpec
from statewise.plugins import Batch, DataSpec, SequencePlugin, item_size
from statewise_training.families.encoder_decoder.config import (
    EncoderDecoderConfig,
    RecurrentEncoderDecoderConfig,
    TransformerEncoderDecoderConfig,
)
from statewise_training.families.encoder_decoder.recurrent import RecurrentEncoderDecoder
from statewise_training.families.encoder_decoder.transformer import TransformerEncoderDecoder
from statewise_training.families.recurrent.config import Cell
from statewise_training.families.shared.losses import next_item_loss

ConfigT = TypeVar("ConfigT", bound=EncoderDecoderConfig)


class EncoderDecoderPlugin(SequencePlugin[ConfigT]):
    """Base of the encoder-decoder plugins: their data and their loss."""

    def loss(self, config: ConfigT, output: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
        """Cross-entropy in nats per token; for real vectors, squared error per element or nats per vector."""
        return next_item_loss(output, targets, mask, head=config.next_item)

    def training_loss(self, module: nn.Module, config: ConfigT, batch: Batch, run: Any) -> Tensor:
        """The loss with label smoothing."""
        return next_item_loss(run(batch), batch.targets, batch.mask, config.label_smoothing, config.next_item)

    def for_data(self, config: dict[str, Any], data: DataSpec) -> dict[str, Any]:
        """Fill in the item sizes of both sides."""
        if data.source is None:
            raise ConfigError(
                f"plugin: {self.name} learns from pairs of source and target, and this data has no sources; "
                "choose data.kind pairs, or another plugin"
            )
        return {**super().for_data(config, data), **item_size(data.source, "source_")}


class TransformerEncoderDecoderPlugin(EncoderDecoderPlugin[TransformerEncoderDecoderConfig]):
    """Encoder-decoder Transformers (Vaswani et al. 2017), from that paper's shape to BART's."""

    name = "transformer_encoder_decoder"
    config_class = TransformerEncoderDecoderConfig

    def spec(self, config: TransformerEncoderDecoderConfig) -> ModelSpec:
        """Specification; state: the number of items, each layer's caches, its keys and values of the source."""
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


class RecurrentEncoderDecoderPlugin(EncoderDecoderPlugin[RecurrentEncoderDecoderConfig]):
    """Base of the recurrent encoder-decoders; each adds its name and its cell."""

    config_class = RecurrentEncoderDecoderConfig
    cell: ClassVar[Cell]

    def spec(self, config: RecurrentEncoderDecoderConfig) -> ModelSpec:
        """Specification; state: each layer's vectors, and the attention's memory."""
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
