"""Positional encodings: additive sinusoids, and rotations of queries and keys."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def sinusoidal_table(num_positions: int, width: int) -> Tensor:
    """Sines in the even columns and cosines in the odd ones, `[position, width]` (Vaswani et al. 2017, section 3.5)."""
    half = (width + 1) // 2
    angles = _angles(num_positions, half, 10_000.0, width)
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :width].float()


def rotary_table(num_positions: int, head_size: int, base: float, divisors: Sequence[float] | None = None) -> Tensor:
    """The cosines of each position's angles and then their sines, `[position, head_size]` (Su et al. 2021)."""
    angles = _angles(num_positions, head_size // 2, base, head_size)
    if divisors is not None:
        angles = angles / torch.tensor(divisors, dtype=torch.float64)
    return torch.cat([angles.cos(), angles.sin()], dim=1).float()


def rotate(vectors: Tensor, rotation: Tensor) -> Tensor:
    """Rotate the pairs (i, i + head_size / 2) of `[row, time, head, head_size]` by the angles of their positions.

    rotation `[row, time, head_size]`: rows of `rotary_table`.
    """
    cosine, sine = rotation[:, :, None].chunk(2, dim=3)
    first, second = vectors.chunk(2, dim=3)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=3)


def _angles(num_positions: int, num_angles: int, base: float, width: int) -> Tensor:
    frequencies = base ** (-2 * torch.arange(num_angles, dtype=torch.float64) / width)
    return torch.arange(num_positions, dtype=torch.float64)[:, None] * frequencies
