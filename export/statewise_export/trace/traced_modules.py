"""Wrappers around the plugin module, one per traced graph."""

from __future__ import annotations

import torch
from torch import Tensor

from statewise.model.spec import ModelSpec
from statewise.modules import Embeds, Encodes, Inspects, MixedStep, StepModule
from statewise_training.families.shared.state import zero_state

State = tuple[Tensor, ...]


class LastOutput(torch.nn.Module):
    """The step with its head at each row's last real item only: the server needs no other.

    Memories, which come out as they went in, are left out of the new state.
    """

    def __init__(self, module: StepModule, spec: ModelSpec) -> None:
        super().__init__()
        self.module = module
        self.spec = spec

    def forward(self, items: Tensor, lengths: Tensor, state: State) -> tuple[Tensor, State]:
        hidden, new_state = self.module(items, lengths, state)
        index = (lengths - 1).clamp(min=0)[:, None, None].expand(-1, 1, hidden.shape[2])
        output = self.module.head(hidden.gather(1, index).squeeze(1))
        return output, _without_memories(new_state, self.spec)


class MixedOutput(torch.nn.Module):
    """The mixed step with its head, and without memories."""

    def __init__(self, module: MixedStep, spec: ModelSpec) -> None:
        super().__init__()
        self.module = module
        self.spec = spec

    def forward(self, items: Tensor, state: State, chunk: Tensor, chunk_state: State) -> tuple[Tensor, State, State]:
        hidden, *states = self.module.forward_mixed(items, state, chunk, chunk_state)
        new_state, new_chunk_state = (_without_memories(new, self.spec) for new in states)
        return self.module.head(hidden), new_state, new_chunk_state


class FirstState(torch.nn.Module):
    """First state from a source, as new tensors: an output of a graph cannot be its input."""

    def __init__(self, module: Encodes) -> None:
        super().__init__()
        self.module = module

    def forward(self, source: Tensor, source_lengths: Tensor) -> State:
        return tuple(part.clone() for part in self.module.encode(source, source_lengths))


def _without_memories(state: State, spec: ModelSpec) -> State:
    return tuple(part for part, s in zip(state, spec.state, strict=True) if s.kind != "memory")


class Answer(torch.nn.Module):
    """Whole sequences to the output of a model without state."""

    def __init__(self, module: StepModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, items: Tensor, lengths: Tensor) -> Tensor:
        return self.module.head(self.module(items, lengths, ())[0])


class Embedding(torch.nn.Module):
    """Whole sequences to the embedding of a generating model."""

    def __init__(self, module: Embeds) -> None:
        super().__init__()
        self.module = module

    def forward(self, items: Tensor, lengths: Tensor) -> Tensor:
        return self.module.embed(items, lengths)


class NextOutputs(torch.nn.Module):
    """Whole sequences to the outputs that predict every item but the first, `[row, time - 1, size]`."""

    def __init__(self, module: StepModule, spec: ModelSpec) -> None:
        super().__init__()
        self.module = module
        self.spec = spec

    def forward(self, items: Tensor, lengths: Tensor) -> Tensor:
        state = zero_state(self.spec, items.shape[0], items.shape[1])
        hidden, _ = self.module(items, lengths, state)
        # Row by row, as in a step: the head's matrix is traced in the same layout, and so is stored once.
        rows = hidden[:, :-1].flatten(0, 1)
        return self.module.head(rows).reshape(items.shape[0], items.shape[1] - 1, -1)


class Shown(torch.nn.Module):
    """Whole sequences to the tensors that the module exposes."""

    def __init__(self, module: Inspects) -> None:
        super().__init__()
        self.module = module

    def forward(self, items: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.module.inspect(items, lengths).values())
