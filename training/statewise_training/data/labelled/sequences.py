"""Labelled sequences in memory, and batches of them; for generation see `statewise_training.data.chunks`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from statewise.bundles.manifest import Surround
from statewise.errors import ConfigError
from statewise.model.spec import ModelSpec
from statewise_training.data.chunks import Batch, Items

Targets = NDArray[np.int64] | NDArray[np.float32]


class LabelledSequences:
    """Whole sequences with a target each, or pieces of sequences with a label for each item.

    `targets`: label indices `[n]` or values `[n, size]`; or, with a `piece_length`, one array `[time]` of label indices
    for each sequence, which is cut into pieces of that many items. `places` are positions for errors. The tokens of
    `surround` are added around every sequence or piece; they count as items and have no targets.
    """

    def __init__(
        self,
        items: Sequence[Items],
        targets: Targets | Sequence[NDArray[np.int64]],
        places: Sequence[str] = (),
        *,
        piece_length: int | None = None,
        surround: Surround = Surround(),  # noqa: B008 # frozen
    ) -> None:
        self.per_sequence = piece_length is None
        self.surround = surround
        self.places = places
        ends = np.cumsum([len(sequence) for sequence in items])
        pieces = [(end - len(sequence), end) for sequence, end in zip(items, ends.tolist(), strict=True)]
        if piece_length is not None:
            own = piece_length - surround.num_tokens
            if own < 1:
                raise ConfigError(
                    f"trainer.sequence_length: {piece_length} items leave no room beside the {surround.num_tokens} "
                    "special tokens around every piece; raise it"
                )
            pieces = [(first, min(first + own, end)) for start, end in pieces for first in range(start, end, own)]
        edges = torch.tensor(pieces)
        self.starts, self.lengths = edges[:, 0], edges[:, 1] - edges[:, 0]
        self.items = torch.from_numpy(np.concatenate(items))
        self.targets = torch.from_numpy(np.asarray(targets) if self.per_sequence else np.concatenate(targets))

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def num_predictions(self) -> int:
        """Number of targets in one pass."""
        return len(self) if self.per_sequence else int(self.lengths.sum())

    def check_fits(self, spec: ModelSpec) -> None:
        """Raise ConfigError where a sequence, or a piece of one, is longer than the model takes."""
        longest = int(self.lengths.argmax())
        length, limit = int(self.lengths[longest]) + self.surround.num_tokens, spec.max_positions
        if limit is None or length <= limit:
            return
        if self.per_sequence:
            added = self.surround.num_tokens
            note = f", {added} special tokens around the text included" if added else ""
            raise ConfigError(
                f"{self.places[longest]}: has {length} items{note}, but the model takes {limit}; "
                "raise model.max_positions, or set data.truncate_to"
            )
        raise ConfigError(
            f"trainer.sequence_length: {length} items do not fit the model's {limit} positions; "
            "lower it, or raise model.max_positions"
        )

    def batch(self, indices: Tensor) -> Batch:
        """Return these sequences or pieces, right-padded with zeros."""
        before, after = (torch.tensor(side) for side in (self.surround.before, self.surround.after))
        lengths = self.lengths[indices]
        time = torch.arange(int(lengths.max()) + len(before) + len(after))
        own = time - len(before)
        mask = (own >= 0) & (own < lengths[:, None])
        # The padding of a short sequence would read the next one, or past the end: clamp, then blank it.
        places = (self.starts[indices][:, None] + own).clamp(0, len(self.items) - 1)
        items = self.items[places] if self.items.is_floating_point() else self.items[places].long()
        items = items.masked_fill(~mask.view(*mask.shape, *[1] * (items.ndim - 2)), 0)
        if len(before):
            items[:, : len(before)] = before
        if len(after):
            behind = len(before) + lengths[:, None] + torch.arange(len(after))
            items.scatter_(1, behind, after.expand(len(items), -1))
        targets = self.targets[indices] if self.per_sequence else self.targets[places].masked_fill(~mask, 0)
        num_added = self.surround.num_tokens
        return Batch(items, targets, mask, per_sequence=self.per_sequence, num_added=num_added)
