"""Configuration of a model over a window of the last items."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from statewise_training.families.shared.items import ItemConfig


class AutoregressiveConfig(ItemConfig):
    """Configuration of an autoregressive model."""

    window: int = Field(default=8, ge=1, le=4096)
    """Number of previous items that predict the next one: the order of the model."""
    hidden_sizes: tuple[PositiveInt, ...] = ()
    """Widths of the layers between window and head; an empty tuple makes the model linear."""
    activation: Literal["relu", "tanh", "gelu"] = "relu"
    """Activation after each hidden layer."""
    embedding_size: int | None = Field(default=None, ge=1)
    """Tokens only: embedding width of each item in the window; 32 where absent."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout probability after each hidden layer, in training only."""
    fit: Literal["gradient", "least_squares"] = "gradient"
    """Training by gradient, or the closed form for linear models of real vectors."""

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
