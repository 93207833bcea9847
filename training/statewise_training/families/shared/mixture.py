"""Mixture density heads (Bishop 1994) in PyTorch: the layer that gives the parameters, and their likelihood."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from statewise.model.spec import HeadSpec, MixtureHead

LOG_DIAGONAL_BOUND = 7.0
"""Bound of the Cholesky diagonals' logarithms, which lie in (-7, 7).

The density of a series that stands still is unbounded, and training would diverge. The bound is smooth, so a component
that has become narrow can widen again. The smallest deviation is 0.0009 of a standardised series'.
"""


class MixtureLayer(nn.Module):
    """A linear layer whose outputs are parameters of a mixture, in `MixtureHead`'s layout, with bounded deviations.

    Initially all components have equal weights and unit covariance; their means are quantiles of a standard normal
    distribution, in a different order for each feature.
    """

    def __init__(self, width: int, head: MixtureHead) -> None:
        super().__init__()
        self.sizes = [head.components, *[head.components * head.features] * 2]
        self.sizes.append(head.output_size - sum(self.sizes))
        self.weight = nn.Parameter(torch.empty(head.output_size, width))
        self.bias = nn.Parameter(torch.zeros(head.output_size))
        nn.init.normal_(self.weight, std=0.02)
        quantiles = torch.special.ndtri((torch.arange(head.components) + 0.5) / head.components)
        means = torch.stack([quantiles[torch.randperm(head.components)] for _ in range(head.features)], dim=1)
        with torch.no_grad():
            self.bias[head.components : head.components + means.numel()] = means.flatten()

    def forward(self, hidden: Tensor) -> Tensor:
        """Parameters `[..., output_size]`."""
        logits, means, log_diagonal, below = F.linear(hidden, self.weight, self.bias).split(self.sizes, dim=-1)
        log_diagonal = LOG_DIAGONAL_BOUND * torch.tanh(log_diagonal / LOG_DIAGONAL_BOUND)
        parts = [logits, means, log_diagonal, below] if self.sizes[-1] else [logits, means, log_diagonal]
        return torch.cat(parts, dim=-1)


def output_layer(width: int, head: HeadSpec, *, bias: bool = True) -> nn.Module:
    """Make the output layer for hidden vectors of that width: linear, or a MixtureLayer."""
    if isinstance(head, MixtureHead):
        return MixtureLayer(width, head)
    return nn.Linear(width, head.output_size, bias=bias)


def log_density(output: Tensor, items: Tensor, head: MixtureHead) -> Tensor:
    """Log-density `[...]` of items `[..., features]` under outputs `[..., output_size]`, in float32."""
    count, width = head.components, head.features
    sizes = [count, count * width, count * width, head.output_size - count * (1 + 2 * width)]
    logits, means, log_diagonal, below = output.float().split(sizes, dim=-1)
    means, log_diagonal = (part.unflatten(-1, (count, width)) for part in (means, log_diagonal))
    difference = items.float().unsqueeze(-2) - means
    if sizes[-1]:
        factors = torch.diag_embed(log_diagonal.exp())
        rows, columns = torch.tril_indices(width, width, -1, device=output.device)
        factors[..., rows, columns] = below.unflatten(-1, (count, -1))
        whitened = torch.linalg.solve_triangular(factors, difference.unsqueeze(-1), upper=False).squeeze(-1)
    else:
        whitened = difference * torch.exp(-log_diagonal)
    components = -0.5 * whitened.square().sum(-1) - log_diagonal.sum(-1) - 0.5 * width * math.log(2 * math.pi)
    return torch.logsumexp(components + logits.log_softmax(-1), dim=-1)
