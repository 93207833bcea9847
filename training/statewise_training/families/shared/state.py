"""Initial states: zeros, or from an encoder."""

import torch
from torch import Tensor, nn

from statewise.model.spec import ModelSpec
from statewise.modules import Encodes, require


def zero_state(
    spec: ModelSpec,
    num_rows: int,
    num_positions: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> tuple[Tensor, ...]:
    """Zeros for every state tensor; caches have room for `num_positions` items, `dtype` is for real numbers."""
    return tuple(
        torch.zeros(
            num_rows,
            *state.row_shape(num_positions, spec.max_source_positions or 0),
            dtype=torch.int64 if state.dtype == "int64" else dtype,
            device=device,
        )
        for state in spec.state
    )


def encoded_state(
    module: nn.Module, spec: ModelSpec, source: Tensor, source_lengths: Tensor, num_positions: int
) -> tuple[Tensor, ...]:
    """First state of an encoder-decoder: the encoded sources and empty caches.

    source `[row, source]` or `[row, source, features]`, source_lengths `[row]`.
    """
    made = iter(require(module, Encodes).encode(source, source_lengths))
    dtype = next(module.parameters()).dtype
    zeros = zero_state(spec, len(source), num_positions, dtype=dtype, device=source.device)
    return tuple(empty if state.kind == "cache" else next(made) for state, empty in zip(spec.state, zeros, strict=True))
