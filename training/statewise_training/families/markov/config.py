"""Configuration of a first-order model over tokens."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from statewise.plugins import PluginConfig

MAX_VOCABULARY = 8192
"""The largest table is 256 MiB of float32; trained by gradient, it takes four times that."""


class MarkovConfig(PluginConfig):
    """Configuration of a first-order model over tokens."""

    vocabulary_size: int = Field(ge=2)
    """Number of token ids. Filled in from the tokenizer."""
    fit: Literal["counting", "gradient"] = "counting"
    """Relative frequencies in closed form, or the trainer."""
    smoothing: float = Field(default=1.0, gt=0.0, allow_inf_nan=False)
    """Counting only: added to the count of every pair of tokens (Lidstone; 1 is Laplace)."""

    @field_validator("vocabulary_size")
    @classmethod
    def _table_fits(cls, size: int) -> int:
        if size > MAX_VOCABULARY:
            raise ValueError(
                f"{size:,} tokens need a table of {size * size:,} numbers ({size * size * 4 / 2**30:.1f} GiB); "
                f"the limit is {MAX_VOCABULARY:,} tokens. Choose a tokenizer with fewer, or plugin autoregressive with "
                "window 1, whose size grows with the vocabulary alone"
            )
        return size
