"""Pairs in memory and batches of them; pairs are never cut."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from statewise.errors import ConfigError
from statewise.model.spec import ModelSpec
from statewise_training.data.chunks import Batch, Chunks, Items


class Pairs(Chunks):
    """Pairs of source and target; each target is one chunk from its start token to its end token.

    `source_note` follows the word "source" in errors about a length.
    """

    def __init__(
        self, targets: Sequence[Items], sources: Sequence[Items], places: Sequence[str], source_note: str = ""
    ) -> None:
        super().__init__(targets, max(map(len, targets)))
        self.documents, self.sources, self.places = list(targets), list(sources), places
        self._source_note = source_note
        lengths = np.array([len(source) for source in sources])
        self.source_items = torch.from_numpy(np.concatenate(sources))
        self.source_lengths = torch.from_numpy(lengths)
        self.source_starts = torch.from_numpy(np.cumsum(lengths) - lengths)

    def batch(self, indices: Tensor) -> Batch:
        """Return these pairs, both sides right-padded with zeros."""
        lengths = self.source_lengths[indices]
        place = torch.arange(int(lengths.max()))
        source = self.source_items[(self.source_starts[indices][:, None] + place).clamp(max=len(self.source_items) - 1)]
        padding = (place >= lengths[:, None]).view(*source.shape[:2], *[1] * (source.ndim - 2))
        source = source.masked_fill(padding, 0)
        source = source if source.is_floating_point() else source.long()
        return super().batch(indices)._replace(source=source, source_lengths=lengths)

    def check_fits(self, spec: ModelSpec) -> None:
        """Raise ConfigError, naming the line, where a source or a target is longer than the model takes."""
        sides = (
            (f"source{self._source_note}", self.source_lengths, spec.max_source_positions, "max_source_positions"),
            ("target, with its start token,", self.lengths, spec.max_positions, "max_positions"),
        )
        for name, lengths, limit, setting in sides:
            longest = int(lengths.argmax())
            if limit is not None and lengths[longest] > limit:
                raise ConfigError(
                    f"{self.places[longest]}: the {name} has {lengths[longest]} items, but the model takes {limit}; "
                    f"raise model.{setting}, or leave the line out"
                )
