"""Losses that families share."""

from torch import Tensor
from torch.nn import functional as F

from statewise.model_spec import HeadSpec, MixtureHead
from training.mixture import log_density


def next_item_loss(head: HeadSpec, output: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy in nats per token, negative log-density in nats per vector, or squared error per vector element.

    As the head says; over the items that `mask` marks.
    """
    output, targets = output[mask], targets[mask]
    if isinstance(head, MixtureHead):
        return -log_density(output, targets, head).mean()
    return F.cross_entropy(output, targets) if head.kind == "categorical" else F.mse_loss(output, targets)
