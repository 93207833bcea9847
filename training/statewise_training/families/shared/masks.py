"""Which items are real, where rows are padded."""

import torch
from torch import Tensor


def real_items(lengths: Tensor, num_items: int) -> Tensor:
    """Which items of right-padded rows are real, bool `[row, num_items]`, by the rows' lengths `[row]`.

    The first item of an empty row counts as real: a softmax over nothing would not be a number.
    """
    return torch.arange(num_items, device=lengths.device) < lengths.clamp(min=1)[:, None]
