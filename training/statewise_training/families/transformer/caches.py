"""Layouts of a run's new items, and their attention to earlier items: separate rows, or rows mixed with a chunk.

All parts of a Transformer's layers but attention treat each item independently, so only these classes know the layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from statewise_training.families.transformer.attention import attention_weights, cached_attention, weighted_values

State = Sequence[Tensor]


class Caches(Protocol):
    """Attention over the state of a run."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        """Attend in the next layer; shapes as in `cached_attention`, in the layout of the run's items."""


class RowCaches:
    """Rows of items, `[row, time]`, right-padded. State: `position`, then each layer's key and value cache."""

    def __init__(self, state: State, lengths: Tensor) -> None:
        self._position = state[0]
        self._lengths = lengths
        self._past = state[1:]
        self._present: list[Tensor] = []

    def places(self, time: int) -> Tensor:
        """Position of every item, int64 `[row, time]`; meaningless for padding."""
        return self._position[:, None] + torch.arange(time, device=self._position.device)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        """Attend in the next layer."""
        start = len(self._present)
        past_key, past_value = self._past[start], self._past[start + 1]
        attended, *present = cached_attention(
            query, key, value, past_key, past_value, self._position, self._lengths, dropout=dropout
        )
        self._present += present
        return attended

    def new_state(self) -> tuple[Tensor, ...]:
        """The state after the run."""
        return (self._position + self._lengths, *self._present)


class ShownRows:
    """Whole right-padded rows with the mask `visible`; records the attention weights of every layer."""

    def __init__(self, visible: Tensor) -> None:
        self.weights: list[Tensor] = []
        self._visible = visible

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        """Attend in the next layer; without dropout."""
        self.weights.append(attention_weights(query, key, self._visible))
        return weighted_values(self.weights[-1], value)


class MixedCaches:
    """One item of each of n rows, then the chunk of one more row, concatenated: `[1, n + time]`.

    Layers that act per item read the weights once for both parts; attention uses each part's own cache.
    """

    def __init__(self, rows: RowCaches, num_rows: int, chunk: RowCaches) -> None:
        self._rows = rows
        self._num_rows = num_rows
        self._chunk = chunk

    def places(self, time: int) -> Tensor:
        """Position of every item, int64 `[1, n + time]`; `time` is the chunk's length."""
        return torch.cat([self._rows.places(1).transpose(0, 1), self._chunk.places(time)], dim=1)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        """Attend in the next layer."""
        of_rows = (part[:, : self._num_rows].transpose(0, 1) for part in (query, key, value))
        of_chunk = (part[:, self._num_rows :] for part in (query, key, value))
        rows, chunk = self._rows.attend(*of_rows, dropout), self._chunk.attend(*of_chunk, dropout)
        return torch.cat([rows.transpose(0, 1), chunk], dim=1)
