"""Attention of the Transformer's layers to a whole source: to itself in the encoder, to its memory in the decoder.

Written as products and a softmax, whose width never depends on the rows beside: a row's numbers are its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from training.encoder_decoder.config import source_mask
from training.transformer.caches import RowCaches


def masked_attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, dropout: float = 0.0) -> Tensor:
    """Attention to the items that a mask marks, scaled by the root of the head size.

    query `[row, time, head, head_size]`; keys and values `[row, kv_head, source, head_size]`, each of whose heads is
    shared by a group of query heads; mask bool `[row, source]`. Returns the query's shape.
    """
    num_heads, head_size = query.shape[2:]
    groups = query.unflatten(2, (keys.shape[1], -1)).permute(0, 2, 3, 1, 4)
    scores = groups @ keys.unsqueeze(2).transpose(3, 4) * head_size**-0.5
    weights = torch.softmax(scores.masked_fill(~mask[:, None, None, None], float("-inf")), dim=4)
    attended = F.dropout(weights, dropout) @ values.unsqueeze(2) if dropout else weights @ values.unsqueeze(2)
    return attended.permute(0, 3, 1, 2, 4).flatten(2).unflatten(2, (num_heads, head_size))


class WholeSource:
    """A source's items, each of which sees all: the encoder's `Caches`."""

    def __init__(self, lengths: Tensor, num_positions: int) -> None:
        self._mask = source_mask(lengths, num_positions)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        """Attend in the next layer."""
        return masked_attention(query, key.transpose(1, 2), value.transpose(1, 2), self._mask, dropout)


class SourceCaches(RowCaches):
    """Rows with a memory, which is read only and goes through as it is.

    State: `position`, each layer's caches, each layer's keys and values of the source, the source's length.
    """

    def __init__(self, state: Sequence[Tensor], lengths: Tensor) -> None:
        num_caches = (len(state) - 2) // 2
        super().__init__(state[: 1 + num_caches], lengths)
        self._memory = tuple(state[1 + num_caches :])
        self._mask = source_mask(self._memory[-1], self._memory[0].shape[2])
        self._next = 0

    def attend_to_source(self, query: Tensor, dropout: float) -> Tensor:
        """Attend to the source in the next layer; `[row, time, head, head_size]`."""
        keys, values = self._memory[self._next : self._next + 2]
        self._next += 2
        return masked_attention(query, keys, values, self._mask, dropout)

    def new_state(self) -> tuple[Tensor, ...]:
        """The state after the run."""
        return (*super().new_state(), *self._memory)
