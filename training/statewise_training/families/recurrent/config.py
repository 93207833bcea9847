"""Configurations of the recurrent families."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from statewise_training.families.shared.items import InputConfig, ItemConfig

Cell = Literal["rnn", "lstm", "gru"]
DropoutKind = Literal["standard", "locked"]


class RecurrentLayersConfig(InputConfig):
    """Settings common to recurrent step functions and encoders."""

    hidden_size: int = Field(default=256, ge=1)
    num_layers: int = Field(default=1, ge=1, le=64)
    embedding_size: int | None = Field(default=None, ge=1)
    """Width of the token embedding; `hidden_size` where absent."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout probability for the embedding, between layers and before the head, in training only."""
    dropout_kind: DropoutKind = "standard"
    """Standard: a new mask at every time step; locked: one per sequence and layer (Gal and Ghahramani 2016)."""

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
    """Use the embedding's matrix in the head (Press and Wolf 2017); needs embedding_size = hidden_size."""

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
