"""Wrappers that give a model trained on standardised vectors the vectors' own units."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from statewise.model.spec import HeadSpec
from statewise.rules.mixture import in_other_units


class StandardizedInput(nn.Module):
    """Standardise raw vectors (mean 0, deviation 1 per feature) for the module inside.

    Outputs are unchanged, as for an encoder, which does not predict vectors.
    """

    def __init__(self, module: nn.Module, mean: Sequence[float], deviation: Sequence[float]) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("deviation", torch.tensor(deviation))

    def forward(self, items: Tensor, lengths: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Hidden vectors and new state of the module inside; items float32 `[row, time, features]`, raw."""
        return self.module((items - self.mean) / self.deviation, lengths, state)

    def forward_mixed(
        self, items: Tensor, state: tuple[Tensor, ...], chunk: Tensor, chunk_state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The mixed step of the module inside, where it has one."""
        items, chunk = ((raw - self.mean) / self.deviation for raw in (items, chunk))
        return self.module.forward_mixed(items, state, chunk, chunk_state)

    def inspect(self, items: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """Inspection of the module inside, for raw vectors, where it has one."""
        return self.module.inspect((items - self.mean) / self.deviation, lengths)

    def head(self, hidden: Tensor) -> Tensor:
        """The output of the module inside."""
        return self.module.head(hidden)


class Standardized(StandardizedInput):
    """A step function that reads raw vectors and predicts them in raw units."""

    def __init__(self, module: nn.Module, head: HeadSpec, mean: Sequence[float], deviation: Sequence[float]) -> None:
        super().__init__(module, mean, deviation)
        factor, shift = (torch.from_numpy(part).float() for part in in_other_units(head, mean, deviation))
        self.register_buffer("factor", factor)
        self.register_buffer("shift", shift)

    def head(self, hidden: Tensor) -> Tensor:
        """Values or mixture parameters in raw units, `[..., output_size]`."""
        return self.module.head(hidden) * self.factor + self.shift
