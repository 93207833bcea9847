"""Configuration of a model over a window of the last items."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from statewise_training.families.shared.items import ItemConfig


class AutoregressiveConfig(ItemConfig):
    """Configuration of an autoregressive model."""

    window: int = Field(default=8, ge=1, le=4096)
    """How many items the next one depends on, the order of the model."""
    hidden_sizes: tuple[PositiveInt, ...] = ()
    """Widths of the layers between window and head; none makes the model linear."""
    activation: Literal["relu", "tanh", "gelu"] = "relu"
    """After each of those layers."""
    embedding_size: int | None = Field(default=None, ge=1)
    """Tokens only: width of the embedding of each item of the window; 32 where absent."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Applied after each of those layers, in training only."""
    fit: Literal["gradient", "least_squares"] = "gradient"
    """The trainer, or for linear models of real vectors the closed form."""

    @model_validator(mode="after")
    def _consistent(self) -> AutoregressiveConfig:
        if self.features is not None and self.embedding_size is not None:
            raise ValueError("embedding_size needs token input (vocabulary_size)")
        if self.fit == "least_squares" and (self.vocabulary_size is not None or self.hidden_sizes):
            raise ValueError(
                "fit: least_squares is for linear models of real vectors (data.kind series, no hidden_sizes); "
                "use fit: gradient"
            )
        if self.fit == "least_squares" and self.next_item.kind != "value":
            raise ValueError(f"fit: least_squares finds no {self.next_item.kind} head; use fit: gradient")
        return self
