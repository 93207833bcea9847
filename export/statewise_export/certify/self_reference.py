"""A variant's own reference: the runtime, fed one item at a time, with the sampling rules in NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statewise.model.spec import ModelSpec, TokenInput
from statewise.rules.mixture import noise_of
from statewise.rules.sampling import GREEDY, SamplingParams
from statewise_export.certify.driver import RuntimeDecoder
from statewise_training.reference.decoding import next_item

Array = NDArray[Any]


class SelfReference:
    """Computes what statewise_training.reference.decoding.ReferenceDecoder does, with the variant's own step graph."""

    def __init__(self, decoder: RuntimeDecoder) -> None:
        self._decoder = decoder

    @property
    def spec(self) -> ModelSpec:
        """Spec of the model."""
        return self._decoder.runner.spec

    def outputs(self, rows: Sequence[Array], sources: Sequence[Array] | None = None) -> list[NDArray[np.float32]]:
        """Outputs at every position of every row, `[time, size]` each."""
        outputs = self._decoder.prefill(rows, [GREEDY] * len(rows), 1, sources).outputs
        return [np.stack([row[position] for position in sorted(row)]) for row in outputs]

    def generate(
        self,
        prompts: Sequence[Array],
        params: Sequence[SamplingParams],
        num_items: int,
        sources: Sequence[Array] | None = None,
    ) -> tuple[list[Array], list[NDArray[np.float32]]]:
        """Continue every prompt by `num_items`; returns the items of each row and the outputs they were chosen from."""
        runner, num_rows = self._decoder.runner, len(prompts)
        prefilled = self._decoder.prefill(prompts, [GREEDY] * num_rows, 64, sources)
        last = [row[max(row)] for row in prefilled.outputs]
        chosen: list[list[Any]] = [[] for _ in prompts]
        seen: list[list[NDArray[np.float32]]] = [[] for _ in prompts]
        ones, no_noise = np.ones(num_rows, np.int64), runner.sampler.no_noise(num_rows, 1)
        for position in range(num_items):
            for row, output in enumerate(last):
                seen[row].append(output)
                chosen[row].append(self._choose(output, params[row], prompts[row], chosen[row], position))
            if position < num_items - 1:
                items = np.stack([np.stack(row[-1:]) for row in chosen])
                result = runner.step(slice(0, num_rows), items, ones, no_noise, num_rows=num_rows, with_outputs=True)
                assert result.outputs is not None
                last = list(result.outputs)
        return [np.stack(row) for row in chosen], [np.stack(row) for row in seen]

    def outputs_behind(
        self,
        prompts: Sequence[Array],
        items: Sequence[Array],
        sources: Sequence[Array] | None,
        chunk: int,
    ) -> list[NDArray[np.float32]]:
        """Outputs that given items were chosen from, `[item, size]` each: prompts in chunks, then single steps."""
        runner, num_rows = self._decoder.runner, len(prompts)
        prefilled = self._decoder.prefill(prompts, [GREEDY] * num_rows, chunk, sources)
        seen = [[row[max(row)]] for row in prefilled.outputs]
        ones, no_noise = np.ones(num_rows, np.int64), runner.sampler.no_noise(num_rows, 1)
        for position in range(max(map(len, items)) - 1):
            # Rows that have come to their end read their last item again, within the state that is there anyway.
            fed = np.stack([row[min(position, len(row) - 1)] for row in items])[:, None]
            result = runner.step(slice(0, num_rows), fed, ones, no_noise, num_rows=num_rows, with_outputs=True)
            assert result.outputs is not None
            for row, output in enumerate(result.outputs):
                seen[row].append(output)
        return [np.stack(row[: len(own)]) for row, own in zip(seen, items, strict=True)]

    def _choose(
        self, output: NDArray[np.float32], params: SamplingParams, prompt: Array, chosen: Sequence[Any], position: int
    ) -> Any:
        if isinstance(self.spec.input, TokenInput) and not np.isfinite(output).all():
            return np.int64(0)  # the graph's -1 differs from that, and an embedding has no -1
        noise = noise_of(self.spec.head, params.seed or 0).take(position, 1)[0]
        return next_item(self.spec.head, output, params, prompt, chosen, noise)
