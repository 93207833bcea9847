"""Attention to a whole sequence: an encoder's self-attention, a decoder's attention to a source.

Written as products and a softmax whose width does not depend on the batch, so a row is independent of others.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from statewise_training.families.shared.masks import real_items


def masked_attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, dropout: float = 0.0) -> Tensor:
    """Attention to the items that a mask marks, scaled by 1 / sqrt(head size).

    query `[row, time, head, head_size]`; keys and values `[row, kv_head, source, head_size]`, each head shared by
    a group of query heads; mask bool `[row, source]`. Returns the query's shape.
    """
    time, num_heads, head_size = query.shape[1:]
    # The heads of a group are stacked along time: as a batch dimension they would share one matrix, and CUDA would read
    # the list of matrices from host memory, which is gone when a CUDA graph is replayed.
    groups = query.unflatten(2, (keys.shape[1], -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)
    scores = groups @ keys.transpose(2, 3) * head_size**-0.5
    weights = torch.softmax(scores.masked_fill(~mask[:, None, None], float("-inf")), dim=3)
    attended = (F.dropout(weights, dropout) if dropout else weights) @ values
    return attended.unflatten(2, (-1, time)).permute(0, 3, 1, 2, 4).flatten(2).unflatten(2, (num_heads, head_size))


class WholeRows:
    """An encoder's `Caches`: right-padded rows in which every item sees its whole row."""

    def __init__(self, lengths: Tensor, num_positions: int) -> None:
        self._mask = real_items(lengths, num_positions)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        """Attend in the next layer."""
        return masked_attention(query, key.transpose(1, 2), value.transpose(1, 2), self._mask, dropout)
