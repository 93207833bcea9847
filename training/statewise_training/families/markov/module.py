"""The step function of a first-order Markov model: a table lookup."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

State = tuple[Tensor, ...]


class MarkovModule(nn.Module):
    """First-order Markov chain: `table` `[last token, next token]` holds logits, or after counting log-probabilities.

    State: the last token's id + 1, int64 `[row]`; 0 before the first token.
    """

    def __init__(self, vocabulary_size: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(vocabulary_size, vocabulary_size))
        nn.init.normal_(self.table, std=0.02)

    def forward(self, items: Tensor, lengths: Tensor, state: State) -> tuple[Tensor, State]:
        """Items as hidden vectors, int64 `[row, time, 1]`, and the last item of each row as new state."""
        last = items.gather(1, (lengths - 1).clamp(min=0)[:, None]).squeeze(1)
        return items[..., None], (torch.where(lengths > 0, last + 1, state[0]),)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits `[..., vocabulary_size]`."""
        return F.embedding(hidden.squeeze(-1), self.table)
