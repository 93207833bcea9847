"""Decodes ragged batches through the server's runtime, one row per prompt: the certified side of the certificate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statewise.model.spec import TokenInput, ValueHead
from statewise.rules.sampling import SamplingParams
from statewise_server.runtime.steps.adjustment import LogitAdjuster
from statewise_server.runtime.steps.runner import Runner, StepResult

Array = NDArray[Any]


@dataclass(frozen=True)
class Prefilled:
    """Results of feeding the prompts."""

    first: list[StepResult]
    """For each row, the run that ended its prompt."""
    outputs: list[dict[int, NDArray[np.float32]]]
    """For each row, the output at every position where a chunk of it ended."""


class RuntimeDecoder:
    """Feeds prompts and generates, in any chunks and numbers of steps per run."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self._reads_tokens = isinstance(runner.spec.input, TokenInput)
        self._has_probabilities = not isinstance(runner.spec.head, ValueHead)

    def prefill(
        self,
        prompts: Sequence[Array],
        params: Sequence[SamplingParams],
        chunk: int | None = None,
        sources: Sequence[Array] | None = None,
    ) -> Prefilled:
        """Feed every prompt, in chunks of `chunk` items or whole; row i of the pool takes prompt i, and source i."""
        rows = slice(0, len(prompts))
        for row, p in enumerate(params):
            self._start(row, prompts[row], p)
        if sources is not None:
            self.runner.encode(rows, sources)
        noise = self.runner.sampler.noise(rows, [0] * len(prompts), 1)
        outputs: list[dict[int, NDArray[np.float32]]] = [{} for _ in prompts]
        first: list[StepResult | None] = [None] * len(prompts)
        lengths = np.array([len(prompt) for prompt in prompts])
        longest = int(lengths.max())
        for start in range(0, longest, chunk or longest):
            width = min(chunk or longest, longest - start)
            here = np.clip(lengths - start, 0, width)
            items = np.stack([_window(prompt, start, width) for prompt in prompts])
            result = self.runner.step(rows, items, here, noise, num_rows=len(prompts), with_outputs=True)
            assert result.outputs is not None
            for row in np.flatnonzero(here).tolist():
                outputs[row][start + here[row] - 1] = result.outputs[row]
                if start + here[row] == lengths[row]:
                    first[row] = result
        return Prefilled([result for result in first if result is not None], outputs)

    def generate(
        self,
        prompts: Sequence[Array],
        params: Sequence[SamplingParams],
        num_items: int,
        sources: Sequence[Array] | None = None,
        *,
        chunk: int | None = None,
        steps_per_run: Sequence[int] = (1,),
    ) -> tuple[list[Array], list[NDArray[np.float32]]]:
        """Continue every prompt by `num_items`; `steps_per_run` is gone through again and again.

        Returns each row's items and log-probabilities (`[num_items]`; empty for values).
        """
        prefilled = self.prefill(prompts, params, chunk, sources)
        items = [[result.items[0, row]] for row, result in enumerate(prefilled.first)]
        log_probabilities = [self._log_probabilities(r, row) for row, r in enumerate(prefilled.first)]
        adjusters = [self._adjuster(p, prompt) for p, prompt in zip(params, prompts, strict=True)]
        for row, adjuster in enumerate(adjusters):
            adjuster.append(items[row])
        for position, steps in _runs(num_items, steps_per_run if self.runner.can_decode_many else (1,)):
            for row, adjuster in enumerate(adjusters):
                self.runner.sampler.adjustments[row] = adjuster.adjustment()
            noise = self.runner.sampler.noise(slice(0, len(prompts)), [position] * len(prompts), steps)
            last = np.stack([row[-1:] for row in items])
            result = self.runner.decode(len(prompts), last, noise, num_rows=len(prompts))
            for row, adjuster in enumerate(adjusters):
                items[row] += list(result.items[:, row])
                log_probabilities[row] += self._log_probabilities(result, row)
                adjuster.append(result.items[:, row].tolist())
        return [np.stack(row) for row in items], [np.array(row, np.float32) for row in log_probabilities]

    def generate_beside(
        self,
        prompts: Sequence[Array],
        params: Sequence[SamplingParams],
        chunk: int,
        sources: Sequence[Array] | None = None,
    ) -> tuple[list[Array], list[NDArray[np.float32]], list[dict[int, NDArray[np.float32]]]]:
        """Prefill all prompts but the last one, and decode them while the last one is read, one item to a chunk of it.

        Returns each row's items and log-probabilities, the last row's being the one item after its prompt, and the
        outputs of the runs that did both, by position.
        """
        last = len(prompts) - 1
        prefilled = self.prefill(prompts[:last], params[:last], chunk, sources and sources[:last])
        items = [[result.items[0, row]] for row, result in enumerate(prefilled.first)]
        log_probabilities = [self._log_probabilities(r, row) for row, r in enumerate(prefilled.first)]
        outputs: list[dict[int, NDArray[np.float32]]] = [{} for _ in prompts]
        self._start(last, prompts[last], params[last])
        if sources is not None:
            self.runner.encode(slice(last, last + 1), sources[last:])
        for position, start in enumerate(range(0, len(prompts[last]), chunk), start=1):
            noise = self.runner.sampler.noise(slice(0, last + 1), [position] * last + [0], 1)
            latest = np.stack([row[-1:] for row in items])
            piece = prompts[last][None, start : start + chunk]
            result = self.runner.mixed(last, latest, piece, noise, num_rows=len(prompts), with_outputs=True)
            assert result.outputs is not None
            outputs[last][start + piece.shape[1] - 1] = result.outputs[last]
            for row in range(last):
                outputs[row][len(prompts[row]) + position - 1] = result.outputs[row]
                items[row].append(result.items[0, row])
                log_probabilities[row] += self._log_probabilities(result, row)
        items.append([result.items[0, last]])
        log_probabilities.append(self._log_probabilities(result, last))
        return [np.stack(row) for row in items], [np.array(row, np.float32) for row in log_probabilities], outputs

    def _start(self, row: int, prompt: Array, params: SamplingParams) -> None:
        self.runner.pool.clear_row(row)
        self.runner.sampler.set(row, params, 0 if self._has_probabilities else -1)
        self.runner.sampler.adjustments[row] = self._adjuster(params, prompt).adjustment()

    def _adjuster(self, params: SamplingParams, prompt: Array) -> LogitAdjuster:
        return LogitAdjuster(params, prompt.tolist() if self._reads_tokens else ())

    def _log_probabilities(self, result: StepResult, row: int) -> list[float]:
        return [] if result.log_probabilities is None else result.log_probabilities[:, row].tolist()


def _runs(num_items: int, steps_per_run: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Position and number of steps of each decode run; the first item comes from the prompt's run."""
    position = 1
    for steps in cycle(steps_per_run):
        if position >= num_items:
            return
        steps = min(steps, num_items - position)
        yield position, steps
        position += steps


def _window(prompt: Array, start: int, width: int) -> Array:
    piece = prompt[start : start + width]
    return np.concatenate([piece, np.zeros((width - len(piece), *prompt.shape[1:]), prompt.dtype)])
