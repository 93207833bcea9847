"""Padding: masks of the real items in padded rows, and rows filled up with zeros."""

import torch
from torch import Tensor


def real_items(lengths: Tensor, num_items: int) -> Tensor:
    """Mask of the real items in right-padded rows, bool `[row, num_items]`, from the lengths `[row]`.

    The first item of an empty row counts as real: a softmax over an empty set is NaN.
    """
    return torch.arange(num_items, device=lengths.device) < lengths.clamp(min=1)[:, None]


def pad_source(memory: Tensor, num_positions: int, dim: int) -> Tensor:
    """Pad the memory with zeros along a dimension, to `num_positions` items."""
    shape = list(memory.shape)
    shape[dim] = num_positions - shape[dim]
    return torch.cat([memory, memory.new_zeros(shape)], dim)
