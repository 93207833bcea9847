"""Losses that families share."""

from torch import Tensor
from torch.nn import functional as F

from statewise.model.spec import HeadSpec, MixtureHead
from statewise_training.families.shared.mixture import log_density


def next_item_loss(
    output: Tensor, targets: Tensor, mask: Tensor, label_smoothing: float = 0.0, head: HeadSpec | None = None
) -> Tensor:
    """Cross-entropy in nats per token, or squared error per vector element, over the items that `mask` marks.

    For a mixture head, negative log-density in nats per vector.
    `label_smoothing` is the share of a target token's probability that is spread over the whole vocabulary.
    """
    output, targets = output[mask], targets[mask]
    if isinstance(head, MixtureHead):
        return -log_density(output, targets, head).mean()
    if targets.is_floating_point():
        return F.mse_loss(output, targets)
    return F.cross_entropy(output, targets, label_smoothing=label_smoothing)
