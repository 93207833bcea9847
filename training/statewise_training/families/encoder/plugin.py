"""Plugins `transformer_encoder`, `lstm_encoder`, `gru_encoder` and `rnn_encoder`."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from statewise.errors import ConfigError
from statewise.model.spec import ModelSpec
from statewise.plugins import DataSpec, SequencePlugin
from statewise_training.families.encoder.answers import AnswerConfig, answer_for_data
from statewise_training.families.encoder.config import (
    RecurrentEncoderConfig,
    RNNEncoderConfig,
    TransformerEncoderConfig,
)
from statewise_training.families.encoder.losses import answer_loss, contrastive_loss
from statewise_training.families.encoder.recurrent import RecurrentEncoder
from statewise_training.families.encoder.transformer import TransformerEncoder
from statewise_training.families.recurrent.config import Cell


class EncoderPlugin(SequencePlugin[AnswerConfig]):
    """Base of the encoder plugins; each adds its name and its layers."""

    config_class = AnswerConfig

    def spec(self, config: AnswerConfig) -> ModelSpec:
        """Specification without state: the module reads a whole sequence at once."""
        return config.model_spec()

    def for_data(self, config: dict[str, Any], data: DataSpec) -> dict[str, Any]:
        """Fill in the sizes of items and answers, and the labels' names."""
        if data.labels is None and data.value_size is None:
            raise ConfigError(
                f"plugin: {self.name} learns from labelled sequences, and this data has no labels; "
                "choose data.kind labelled, or another plugin"
            )
        return answer_for_data(config, data)

    def loss(
        self, config: AnswerConfig, output: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Cross-entropy in nats per label, squared error per number, or the contrastive loss of embeddings."""
        if config.head == "embedding":
            return contrastive_loss(output, targets)
        return answer_loss(output, targets, mask)


class TransformerEncoderPlugin(EncoderPlugin):
    """Transformers with bidirectional attention (Vaswani et al. 2017; Devlin et al. 2019)."""

    name = "transformer_encoder"
    config_class = TransformerEncoderConfig

    def inspects(self, config: TransformerEncoderConfig) -> bool:
        """Return True: the module shows its attention weights."""
        return True

    def build(self, config: TransformerEncoderConfig) -> nn.Module:
        """The module, freshly initialised."""
        return TransformerEncoder(config)


class RecurrentEncoderPlugin(EncoderPlugin):
    """Recurrent layers in both directions (Schuster and Paliwal 1997)."""

    config_class = RecurrentEncoderConfig
    cell: ClassVar[Cell]

    def inspects(self, config: RecurrentEncoderConfig) -> bool:
        """Whether the layers have gates to show; plain recurrent networks have none."""
        return self.cell != "rnn"

    def build(self, config: RecurrentEncoderConfig) -> nn.Module:
        """The module, initialised as torch.nn does."""
        return RecurrentEncoder(self.cell, config)


class LSTMEncoderPlugin(RecurrentEncoderPlugin):
    """Bidirectional long short-term memory (torch.nn.LSTM)."""

    name = "lstm_encoder"
    cell = "lstm"


class GRUEncoderPlugin(RecurrentEncoderPlugin):
    """Bidirectional gated recurrent units (torch.nn.GRU)."""

    name = "gru_encoder"
    cell = "gru"


class RNNEncoderPlugin(RecurrentEncoderPlugin):
    """Bidirectional Elman networks, tanh or ReLU (torch.nn.RNN)."""

    name = "rnn_encoder"
    cell = "rnn"
    config_class = RNNEncoderConfig
