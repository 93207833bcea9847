"""What the encoder-decoder families read, and how their loss is taken."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from statewise.errors import ConfigError
from statewise.model.spec import InputSpec, ModelSpec, RealInput, StateSpec, TokenInput
from statewise.plugins import Batch, DataSpec, SequencePlugin, item_size
from statewise_training.families.shared.items import ItemConfig
from statewise_training.families.shared.losses import next_item_loss


class EncoderDecoderConfig(ItemConfig):
    """Base of a configuration that also says what the sources are."""

    source_vocabulary_size: int | None = Field(default=None, ge=2)
    """Sources of tokens: number of token ids. Filled in from the tokenizer."""
    source_features: int | None = Field(default=None, ge=1)
    """Sources of real vectors: numbers per item. Filled in from the data."""
    max_source_positions: int = Field(default=128, ge=1, le=1 << 20)
    """Longest source. Each row holds memory for as many items, and attention to it costs accordingly."""
    shared_embeddings: bool = True
    """Sources and targets are embedded by one matrix, where both are tokens; needs one vocabulary."""
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
        """Whether encoder and decoder read through one matrix."""
        both_tokens = self.source_vocabulary_size is not None and self.vocabulary_size is not None
        return self.shared_embeddings and both_tokens

    @property
    def source(self) -> InputSpec:
        """The items of the sources."""
        if self.source_vocabulary_size is not None:
            return TokenInput(vocabulary_size=self.source_vocabulary_size)
        return RealInput(features=self.source_features or 0)

    def model_spec(self, state: tuple[StateSpec, ...], max_positions: int | None = None, **others: object) -> ModelSpec:
        """A model that reads a source, and then gives items one after another."""
        source = {"source": self.source, "max_source_positions": self.max_source_positions}
        return super().model_spec(state, max_positions, **source, **others)


ConfigT = TypeVar("ConfigT", bound=EncoderDecoderConfig)


class EncoderDecoderPlugin(SequencePlugin[ConfigT]):
    """What the families share: their data, and their loss."""

    def loss(self, config: ConfigT, output: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
        """Cross-entropy in nats per token; of real vectors squared error per element, or nats per vector."""
        return next_item_loss(output, targets, mask, head=config.next_item)

    def training_loss(self, module: nn.Module, config: ConfigT, batch: Batch, run: Any) -> Tensor:
        """The loss, with the targets smoothed."""
        return next_item_loss(run(batch), batch.targets, batch.mask, config.label_smoothing, config.next_item)

    def for_data(self, config: dict[str, Any], data: DataSpec) -> dict[str, Any]:
        """The raw configuration with the sizes of both sides."""
        if data.source is None:
            raise ConfigError(
                f"plugin: {self.name} learns from pairs of source and target, and this data has no sources; "
                "choose data.kind pairs, or another plugin"
            )
        return {**super().for_data(config, data), **item_size(data.source, "source_")}


def pad_source(memory: Tensor, num_positions: int, dim: int) -> Tensor:
    """The memory with zeros behind it along a dimension, up to `num_positions` items."""
    shape = list(memory.shape)
    shape[dim] = num_positions - shape[dim]
    return torch.cat([memory, memory.new_zeros(shape)], dim)
