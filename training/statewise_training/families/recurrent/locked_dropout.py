"""Variational dropout: one mask per sequence and layer, the same at every time step (Gal and Ghahramani 2016).

Merity et al. 2018 call it "locked" between layers; the recurrent connections have none here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LockedDropout(nn.Dropout):
    """Drop features of `[row, time, features]`: one mask per row, for all of its time steps."""

    def forward(self, inputs: Tensor) -> Tensor:
        """In training, inputs times a mask `[row, 1, features]` of 0 and 1 / (1 - p); else the inputs."""
        if not self.training:
            return inputs
        return inputs * F.dropout(torch.ones_like(inputs[:, :1]), self.p)


def single_layer(rnn: nn.RNNBase, layer: int, direction: str = "") -> nn.RNNBase:
    """Return one layer of a stack as a module on the same parameters; `direction` "_reverse" is the backward one.

    The module always runs forward: for a backward layer the caller reverses the rows.
    """
    options = {"nonlinearity": rnn.nonlinearity} if isinstance(rnn, nn.RNN) else {}
    input_size = rnn.hidden_size * (2 if rnn.bidirectional else 1) if layer else rnn.input_size
    # On the meta device nothing is allocated, nor drawn from the random generator.
    single = type(rnn)(input_size, rnn.hidden_size, batch_first=True, device="meta", **options)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        setattr(single, f"{name}_l0", getattr(rnn, f"{name}_l{layer}{direction}"))
    return single
