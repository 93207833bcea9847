"""Losses that families share."""

from torch import Tensor
from torch.nn import functional as F


def next_item_loss(output: Tensor, targets: Tensor, mask: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy in nats per token, or squared error per vector element; over the items that `mask` marks.

    `label_smoothing` is the share of a target token's probability that is spread over the whole vocabulary.
    """
    if targets.is_floating_point():
        return F.mse_loss(output[mask], targets[mask])
    return F.cross_entropy(output[mask], targets[mask], label_smoothing=label_smoothing)
