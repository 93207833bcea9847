"""Rotary positions as `config.json` describes them."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import AliasChoices, BaseModel, Field, PositiveFloat, model_validator


class Rotations(BaseModel):
    """Record of `rope_parameters`; before transformers 5 `rope_scaling`, with the base beside it."""

    rope_type: Literal["default", "linear", "llama3"] = Field(
        default="default", validation_alias=AliasChoices("rope_type", "type")
    )
    rope_theta: float | None = Field(default=None, gt=1)
    partial_rotary_factor: float = Field(default=1.0, ge=1.0, le=1.0)
    factor: PositiveFloat | None = None
    low_freq_factor: PositiveFloat | None = None
    high_freq_factor: PositiveFloat | None = None
    original_max_position_embeddings: PositiveFloat | None = None
    full_attention: None = None
    """Settings per kind of layer, where a model has several."""
    sliding_attention: None = None

    @model_validator(mode="after")
    def _is_complete(self) -> Rotations:
        wanted = {
            "default": (),
            "linear": ("factor",),
            "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
        }[self.rope_type]
        missing = [name for name in wanted if getattr(self, name) is None]
        if missing:
            raise ValueError(f"rope_type {self.rope_type!r} needs {', '.join(missing)}")
        if self.rope_type == "llama3" and self._bounds[0] >= self._bounds[1]:
            raise ValueError("high_freq_factor must be above low_freq_factor")
        return self

    @property
    def _bounds(self) -> tuple[float, float]:
        return self.low_freq_factor or 0.0, self.high_freq_factor or 0.0

    def divisors(self, head_size: int, base: float) -> tuple[float, ...] | None:
        """Divisors of the angles, one for each pair of a head; None for unchanged angles."""
        if self.rope_type == "default" or self.factor is None:
            return None
        return tuple(self._divisor(base ** (-2 * pair / head_size)) for pair in range(head_size // 2))

    def _divisor(self, frequency: float) -> float:
        """Divisor by Llama 3.1: fast pairs within the original length keep their angles, slow ones are stretched."""
        factor = self.factor or 1.0
        if self.rope_type == "linear":
            return factor
        low, high = self._bounds
        num_turns = (self.original_max_position_embeddings or 0.0) * frequency / (2 * math.pi)
        kept = min(max((num_turns - low) / (high - low), 0.0), 1.0)
        return 1 / ((1 - kept) / factor + kept)
