"""Caches of the Transformer decoder: its own items so far, and the source."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from statewise_training.families.shared.masks import real_items
from statewise_training.families.transformer.caches import RowCaches
from statewise_training.families.transformer.whole import masked_attention


class SourceCaches(RowCaches):
    """Caches of rows with a read-only memory of the source.

    State: `position`, each layer's caches, each layer's keys and values of the source, the source's length.
    """

    def __init__(self, state: Sequence[Tensor], lengths: Tensor) -> None:
        num_caches = (len(state) - 2) // 2
        super().__init__(state[: 1 + num_caches], lengths)
        self._memory = tuple(state[1 + num_caches :])
        self._mask = real_items(self._memory[-1], self._memory[0].shape[2])
        self._next = 0

    def attend_to_source(self, query: Tensor, dropout: float) -> Tensor:
        """Attend to the source in the next layer; `[row, time, head, head_size]`."""
        keys, values = self._memory[self._next : self._next + 2]
        self._next += 2
        return masked_attention(query, keys, values, self._mask, dropout)

    def new_state(self) -> tuple[Tensor, ...]:
        """The state after the run."""
        return (*super().new_state(), *self._memory)
