"""Training losses of encoders."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_TEMPERATURE = 0.1


def answer_loss(output: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy in nats per label, or squared error per number.

    output `[row, labels]` and targets `[row]`; or `[row, time, labels]` and `[row, time]`, over the items that `mask`
    marks; or values and targets `[row, size]`.
    """
    if targets.is_floating_point():
        return F.mse_loss(output, targets)
    if targets.ndim == 2:
        return F.cross_entropy(output[mask], targets[mask])
    return F.cross_entropy(output, targets)


def contrastive_loss(embeddings: Tensor, targets: Tensor) -> Tensor:
    """Supervised contrastive loss, in nats per row (Khosla et al. 2020, equation 2).

    embeddings `[row, size]` of length 1, targets `[row]`. Rows without another row of the same label are left out.
    """
    itself = torch.eye(len(targets), dtype=torch.bool, device=targets.device)
    similarity = (embeddings @ embeddings.T / _TEMPERATURE).masked_fill(itself, -torch.inf)
    log_probability = similarity.log_softmax(dim=1).masked_fill(itself, 0.0)
    alike = (targets[:, None] == targets) & ~itself
    num_alike = alike.sum(1)
    per_row = -(log_probability * alike).sum(1) / num_alike.clamp(min=1)
    return per_row.sum() / (num_alike > 0).sum().clamp(min=1)
