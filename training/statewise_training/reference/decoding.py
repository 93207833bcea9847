"""The reference decoder: eager PyTorch with the rules of statewise.rules.sampling and statewise.rules.mixture.

The certificate compares the served model with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from statewise.model.spec import HeadSpec, MixtureHead, ModelSpec, ValueHead
from statewise.modules import StepModule, require
from statewise.rules import mixture, sampling
from statewise.rules.sampling import SamplingParams
from statewise_training.families.shared.state import encoded_state, zero_state

Items = NDArray[np.int64] | NDArray[np.float32]


class ReferenceDecoder:
    """Runs a step function over ragged batches, in evaluation mode and without gradients."""

    def __init__(self, module: nn.Module, spec: ModelSpec) -> None:
        self.module = module.eval()
        self.step = require(self.module, StepModule)
        self.spec = spec

    @torch.inference_mode()
    def outputs(self, rows: Sequence[Items], sources: Sequence[Items] | None = None) -> list[NDArray[np.float32]]:
        """Outputs at every position of every row, `[time, output_size]` each (teacher forcing).

        `sources`: one per row, `[source]` or `[source, features]`, for a model that reads sources.
        """
        items, lengths = _pad(rows)
        hidden, _ = self.step(items, lengths, self._first_state(len(rows), items.shape[1], sources))
        output = self.step.head(hidden).numpy()
        return [output[row, : len(items)] for row, items in enumerate(rows)]

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Items],
        params: Sequence[SamplingParams],
        num_items: int,
        sources: Sequence[Items] | None = None,
    ) -> tuple[list[Items], list[NDArray[np.float32]]]:
        """Continue every prompt by `num_items`; end tokens do not stop it.

        Returns the items of each row and the outputs they were chosen from, `[num_items, size]` each.
        """
        items, lengths = _pad(prompts)
        state = self._first_state(len(prompts), items.shape[1] + num_items, sources)
        noise = [mixture.noise_of(self.spec.head, p.seed or 0).take(0, num_items) for p in params]
        chosen: list[list[NDArray[np.generic]]] = [[] for _ in prompts]
        seen: list[list[NDArray[np.float32]]] = [[] for _ in prompts]
        for position in range(num_items):
            hidden, state = self.step(items, lengths, state)
            last = hidden[torch.arange(len(prompts)), lengths - 1]
            for row, output in enumerate(self.step.head(last).numpy()):
                seen[row].append(output)
                drawn_with = noise[row][position]
                item = next_item(self.spec.head, output, params[row], prompts[row], chosen[row], drawn_with)
                chosen[row].append(item)
            items, lengths = _pad([np.stack(row[-1:]) for row in chosen])
        return [np.stack(row) for row in chosen], [np.stack(row) for row in seen]

    def _first_state(self, num_rows: int, num_positions: int, sources: Sequence[Items] | None) -> tuple[Tensor, ...]:
        if sources is None:
            return zero_state(self.spec, num_rows, num_positions)
        return encoded_state(self.module, self.spec, *_pad(sources), num_positions)


def next_item(
    head: HeadSpec,
    output: NDArray[np.float32],
    params: SamplingParams,
    prompt: Items,
    chosen: Sequence[NDArray[np.generic]],
    noise: Any,
) -> NDArray[np.generic]:
    """Choose the next item from an output `[output_size]`, the items so far and the noise of its position."""
    if isinstance(head, MixtureHead):
        return mixture.choose(output, head, params.temperature, noise)
    if isinstance(head, ValueHead):
        return output
    adjusted = sampling.adjust_logits(output, params, prompt.tolist(), [int(token) for token in chosen])
    return np.asarray(sampling.choose(adjusted, params, noise), np.int64)


def _pad(rows: Sequence[Items]) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(row) for row in rows])
    padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(np.array(row)) for row in rows], batch_first=True)
    return padded, lengths
