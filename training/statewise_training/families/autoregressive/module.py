"""The step function of an autoregressive model: append new items to a window."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from statewise.model.spec import HeadSpec
from statewise_training.families.shared.mixture import output_layer

State = tuple[Tensor, ...]

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


class AutoregressiveModule(nn.Module):
    """A linear or multi-layer map of the last `window` items, the oldest first.

    State: the window, int64 `[row, window]` (tokens) or float32 `[row, window, features]` (real vectors). Zero stands
    for a missing item: the window stores a token as its id + 1, a vector as its difference from `mean`.

    Row 0 of `embedding` stands for a missing item; token rows follow. Without hidden layers, `output.weight` of a model
    of real vectors holds the classical coefficients side by side, `[features, window * features]`.
    """

    def __init__(
        self,
        *,
        window: int,
        vocabulary_size: int | None,
        features: int | None,
        embedding_size: int,
        hidden_sizes: tuple[int, ...],
        activation: str,
        dropout: float,
        head: HeadSpec,
    ) -> None:
        super().__init__()
        self.window = window
        if vocabulary_size is not None:
            self.embedding = nn.Embedding(vocabulary_size + 1, embedding_size)
        else:
            self.embedding = None
            self.mean = nn.Parameter(torch.zeros(features or 0))
        sizes = [window * (features or embedding_size), *hidden_sizes]
        self.layers = nn.Sequential()
        for width, next_width in zip(sizes, hidden_sizes, strict=False):
            self.layers.extend([nn.Linear(width, next_width), ACTIVATIONS[activation](), nn.Dropout(dropout)])
        self.output = output_layer(sizes[-1], head)

    def forward(self, items: Tensor, lengths: Tensor, state: State) -> tuple[Tensor, State]:
        """Windows after every item, `[row, time, window]` or `[row, time, window * features]`, and the new state.

        The head holds the whole map, so the server evaluates one window per prompt, whatever its length.
        """
        line = torch.cat([state[0], items + 1 if self.embedding is not None else items - self.mean], dim=1)
        places = torch.arange(self.window, device=items.device)
        ends = torch.arange(1, items.shape[1] + 1, device=items.device)
        windows = line.index_select(1, (ends[:, None] + places).flatten()).view(*items.shape[:2], -1)
        last = lengths[:, None] + places
        last = last.view(*last.shape, *[1] * (line.ndim - 2)).expand(-1, -1, *line.shape[2:])
        return windows, (line.gather(1, last),)

    def head(self, hidden: Tensor) -> Tensor:
        """Outputs for the next item, `[..., output_size]`."""
        if self.embedding is not None:
            hidden = self.embedding(hidden).flatten(-2)
        return self.output(self.layers(hidden))
