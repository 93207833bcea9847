"""Exact match: the share of targets that greedy decoding reproduces."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from statewise.model.spec import ModelSpec
from statewise_training.data.chunks import Batch
from statewise_training.data.pairs.batches import Pairs
from statewise_training.families.shared.state import encoded_state

MAX_PAIRS = 512
"""Maximum number of decoded pairs: enough to estimate the share to a few percent."""


@torch.inference_mode()
def exact_match(module: nn.Module, spec: ModelSpec, pairs: Pairs, batch_size: int) -> tuple[float, int]:
    """Share of the first MAX_PAIRS sources whose greedy output is their target, and the number of these."""
    count = min(MAX_PAIRS, len(pairs))
    batches = (pairs.batch(indices) for indices in torch.arange(count).split(batch_size))
    return sum(_num_exact(module, spec, batch) for batch in batches) / count, count


def _num_exact(module: nn.Module, spec: ModelSpec, batch: Batch) -> int:
    # As many steps as the longest target has; a row with a different item before its own end is wrong already.
    decoded = greedy(module, spec, batch, batch.targets.shape[1])
    return int(((decoded == batch.targets) | ~batch.mask).all(1).sum())


def greedy(module: nn.Module, spec: ModelSpec, batch: Batch, num_items: int) -> Tensor:
    """Decode the most probable tokens greedily, int64 `[row, num_items]`; end tokens do not stop a row."""
    state = encoded_state(module, spec, batch.source, batch.source_lengths, num_items)
    items, one = batch.items[:, :1], torch.ones_like(batch.source_lengths)
    decoded = []
    for _ in range(num_items):
        hidden, state = module(items, one, state)
        items = module.head(hidden).argmax(-1)
        decoded.append(items)
    return torch.cat(decoded, 1)
