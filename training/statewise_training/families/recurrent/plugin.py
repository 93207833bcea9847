"""Plugins `rnn`, `lstm` and `gru`."""

from __future__ import annotations

from typing import ClassVar

import torch

from statewise.model.spec import ModelSpec, StateSpec
from statewise.plugins import SequencePlugin
from statewise_training.families.recurrent.config import (
    Cell,
    RecurrentConfig,
    RNNConfig,
)
from statewise_training.families.recurrent.module import RecurrentModule
from statewise_training.families.shared.losses import next_item_loss


class RecurrentPlugin(SequencePlugin[RecurrentConfig]):
    """Base of the three plugins; each adds its name and its cell."""

    config_class = RecurrentConfig
    cell: ClassVar[Cell]

    def spec(self, config: RecurrentConfig) -> ModelSpec:
        """Specification; state: one hidden vector per layer, and for LSTM one cell vector."""
        vectors = ("hidden", "cell") if self.cell == "lstm" else ("hidden",)
        state = tuple(
            StateSpec(name=f"{vector}.{layer}", shape=("row", config.hidden_size))
            for layer in range(config.num_layers)
            for vector in vectors
        )
        return config.model_spec(state)

    def inspects(self, config: RecurrentConfig) -> bool:
        """Whether the layers have gates to show; plain recurrent networks have none."""
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
        """Cross-entropy in nats per token; for real vectors, squared error per element or nats per vector."""
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
