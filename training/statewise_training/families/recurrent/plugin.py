"""Plugins `rnn`, `lstm` and `gru`."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator

from statewise.model.spec import ModelSpec, StateSpec
from statewise.plugins import SequencePlugin
from statewise_training.families.recurrent.module import Cell, DropoutKind, RecurrentModule
from statewise_training.families.shared.items import InputConfig, ItemConfig
from statewise_training.families.shared.losses import next_item_loss


class RecurrentLayersConfig(InputConfig):
    """What step functions and encoders have in common."""

    hidden_size: int = Field(default=256, ge=1)
    num_layers: int = Field(default=1, ge=1, le=64)
    embedding_size: int | None = Field(default=None, ge=1)
    """Width of the token embedding; `hidden_size` where absent."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Applied to the embedding, between layers and before the head, in training only."""
    dropout_kind: DropoutKind = "standard"
    """A new mask at every time step, or ("locked") one per sequence and layer (Gal and Ghahramani 2016)."""

    @model_validator(mode="after")
    def _only_tokens_are_embedded(self) -> RecurrentLayersConfig:
        if self.features is not None and self.embedding_size is not None:
            raise ValueError("embedding_size needs token input (vocabulary_size)")
        return self

    @property
    def embedding_width(self) -> int:
        """Width of the token embedding."""
        return self.embedding_size or self.hidden_size


class RecurrentConfig(RecurrentLayersConfig, ItemConfig):
    """Configuration of a recurrent model."""

    tied_embeddings: bool = False
    """The head uses the embedding's matrix (Press and Wolf 2017); needs embedding_size = hidden_size."""

    @model_validator(mode="after")
    def _consistent(self) -> RecurrentConfig:
        if self.features is not None and self.tied_embeddings:
            raise ValueError("tied_embeddings needs token input (vocabulary_size)")
        if self.tied_embeddings and self.embedding_width != self.hidden_size:
            raise ValueError(
                f"tied_embeddings needs embedding_size = hidden_size, got {self.embedding_width} and {self.hidden_size}"
            )
        return self


class RNNConfig(RecurrentConfig):
    """Configuration of an Elman network."""

    nonlinearity: Literal["tanh", "relu"] = "tanh"


class RecurrentPlugin(SequencePlugin[RecurrentConfig]):
    """What the three families share; each adds its name and its cell."""

    config_class = RecurrentConfig
    cell: ClassVar[Cell]

    def spec(self, config: RecurrentConfig) -> ModelSpec:
        """One hidden vector per layer, and for LSTM one cell vector."""
        vectors = ("hidden", "cell") if self.cell == "lstm" else ("hidden",)
        state = tuple(
            StateSpec(name=f"{vector}.{layer}", shape=("row", config.hidden_size))
            for layer in range(config.num_layers)
            for vector in vectors
        )
        return config.model_spec(state)

    def inspects(self, config: RecurrentConfig) -> bool:
        """Gates, which plain recurrent networks lack."""
        return self.cell != "rnn"

    def build(self, config: RecurrentConfig) -> RecurrentModule:
        """The step function, initialised as torch.nn does."""
        return RecurrentModule(
            self.cell,
            vocabulary_size=config.vocabulary_size,
            input_size=config.features or config.embedding_width,
            hidden_size=config.hidden_size,
            num_layers=config.num_layers,
            dropout=config.dropout,
            tied_embeddings=config.tied_embeddings,
            dropout_kind=config.dropout_kind,
            head=config.next_item,
            nonlinearity=getattr(config, "nonlinearity", "tanh"),
        )

    def loss(
        self, config: RecurrentConfig, output: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Cross-entropy in nats per token; of real vectors squared error per element, or nats per vector."""
        return next_item_loss(output, targets, mask, head=config.next_item)


class RNNPlugin(RecurrentPlugin):
    """Elman networks, tanh or ReLU (torch.nn.RNN)."""

    name = "rnn"
    cell = "rnn"
    config_class = RNNConfig


class LSTMPlugin(RecurrentPlugin):
    """Long short-term memory (torch.nn.LSTM)."""

    name = "lstm"
    cell = "lstm"


class GRUPlugin(RecurrentPlugin):
    """Gated recurrent units (torch.nn.GRU)."""

    name = "gru"
    cell = "gru"
