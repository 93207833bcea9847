"""Configurations of the encoder families."""

from __future__ import annotations

from typing import Literal

from statewise_training.families.encoder.answers import AnswerConfig
from statewise_training.families.recurrent.config import RecurrentLayersConfig
from statewise_training.families.transformer.config import TransformerLayersConfig


class TransformerEncoderConfig(AnswerConfig, TransformerLayersConfig):
    """Configuration of a Transformer encoder."""


class RecurrentEncoderConfig(AnswerConfig, RecurrentLayersConfig):
    """Configuration of a bidirectional recurrent encoder; `hidden_size` is that of one direction."""


class RNNEncoderConfig(RecurrentEncoderConfig):
    """Configuration of a bidirectional Elman network."""

    nonlinearity: Literal["tanh", "relu"] = "tanh"
