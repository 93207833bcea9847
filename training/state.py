"""The state before any item."""

import torch
from torch import Tensor

from statewise.manifest import ModelSpec


def zero_state(
    spec: ModelSpec,
    num_rows: int,
    num_positions: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> tuple[Tensor, ...]:
    """Zeros for every state tensor; caches have room for `num_positions` items, `dtype` is that of real numbers."""
    return tuple(
        torch.zeros(
            num_rows,
            *state.row_shape(num_positions),
            dtype=torch.int64 if state.dtype == "int64" else dtype,
            device=device,
        )
        for state in spec.state
    )
