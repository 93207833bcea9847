"""A Transformer's layers in which every item sees all others of its row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from training.encoder.answers import Answer
from training.transformer.module import Layer, TransformerTrunk
from training.transformer.whole import WholeRows

if TYPE_CHECKING:
    from training.encoder.plugin import TransformerEncoderConfig


class TransformerEncoder(TransformerTrunk):
    """The layers of the decoder without its causal mask and its caches, and the answer."""

    def __init__(self, config: TransformerEncoderConfig) -> None:
        super().__init__(config, Layer)
        self.output = Answer(config.hidden_size, config)
        self.initialize()

    def forward(self, items: Tensor, lengths: Tensor, state: tuple[()]) -> tuple[Tensor, tuple[()]]:
        """What the answer reads, of whole right-padded rows."""
        places = torch.arange(items.shape[1], device=items.device)[None]
        hidden = self.run(items, places, WholeRows(lengths, items.shape[1]))
        return self.output.pool(hidden, lengths), ()

    def head(self, hidden: Tensor) -> Tensor:
        """Labels, a value or an embedding."""
        return self.output(hidden)
