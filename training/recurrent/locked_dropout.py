"""Variational dropout: one mask per sequence and layer, the same at every time step (Gal and Ghahramani 2016).

"Locked" is the name of Merity et al. 2018 for it between layers; the recurrent connections have none here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LockedDropout(nn.Dropout):
    """Drops features of `[row, time, features]`, each row its own, for all of its time steps."""

    def forward(self, inputs: Tensor) -> Tensor:
        """In training, inputs times a mask `[row, 1, features]` of 0 and 1 / (1 - p); else the inputs."""
        if not self.training:
            return inputs
        return inputs * F.dropout(torch.ones_like(inputs[:, :1]), self.p)


def single_layer(rnn: nn.RNNBase, layer: int) -> nn.RNNBase:
    """One layer of a stack as a module of its own, on the same parameters."""
    options = {"nonlinearity": rnn.nonlinearity} if isinstance(rnn, nn.RNN) else {}
    directions = ("", "_reverse") if rnn.bidirectional else ("",)
    input_size = rnn.hidden_size * len(directions) if layer else rnn.input_size
    options |= {"bidirectional": rnn.bidirectional, "batch_first": True}
    # On the meta device nothing is allocated, nor drawn from the random generator.
    single = type(rnn)(input_size, rnn.hidden_size, device="meta", **options)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        for direction in directions:
            setattr(single, f"{name}_l0{direction}", getattr(rnn, f"{name}_l{layer}{direction}"))
    return single
