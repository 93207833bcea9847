"""The bidirectional Transformer encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from statewise_training.families.encoder.answers import Answer
from statewise_training.families.shared.masks import real_items
from statewise_training.families.transformer.module import Layer, TransformerTrunk
from statewise_training.families.transformer.whole import WholeRows

if TYPE_CHECKING:
    from statewise_training.families.encoder.config import TransformerEncoderConfig


class TransformerEncoder(TransformerTrunk):
    """The decoder's layers without causal mask or caches, and the answer."""

    def __init__(self, config: TransformerEncoderConfig) -> None:
        super().__init__(config, Layer)
        self.output = Answer(config.hidden_size, config)
        self.initialize()

    def forward(self, items: Tensor, lengths: Tensor, state: tuple[()]) -> tuple[Tensor, tuple[()]]:
        """Pooled hidden vectors of whole right-padded rows, for the head."""
        places = torch.arange(items.shape[1], device=items.device)[None]
        hidden = self.run(items, places, WholeRows(lengths, items.shape[1]))
        return self.output.pool(hidden, lengths), ()

    def inspect(self, items: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """Attention weights of every layer, `attention.0` and so on, `[row, head, query, key]`."""
        return self.show(items, real_items(lengths, items.shape[1])[:, None, None])

    def head(self, hidden: Tensor) -> Tensor:
        """Labels, a value or an embedding."""
        return self.output(hidden)
