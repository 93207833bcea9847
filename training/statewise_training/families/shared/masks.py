"""Padding: masks of the real items in padded rows, and rows filled up with zeros."""

import torch
from torch import Tensor


def real_items(lengths: Tensor, num_items: int) -> Tensor:
    """Which items of right-padded rows are real, bool `[row, num_items]`, by the rows' lengths `[row]`.

    The first item of an empty row counts as real: a softmax over nothing would not be a number.
    """
    return torch.arange(num_items, device=lengths.device) < lengths.clamp(min=1)[:, None]


def pad_source(memory: Tensor, num_positions: int, dim: int) -> Tensor:
    """The memory with zeros behind it along a dimension, up to `num_positions` items."""
    shape = list(memory.shape)
    shape[dim] = num_positions - shape[dim]
    return torch.cat([memory, memory.new_zeros(shape)], dim)
