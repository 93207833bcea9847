"""One request while it is served."""

from __future__ import annotations

from typing import Any

import numpy as np
from tokenizers import Tokenizer

from statewise.errors import DataLossError
from statewise.rules.text import TextStream
from statewise_server.engine.request import Delta, FinishReason, Stream, TokenLogProbability
from statewise_server.runtime.state.pool import SavedRow, StatePool
from statewise_server.runtime.steps.adjustment import LogitAdjuster
from statewise_server.runtime.steps.runner import StepResult

ROOT = b""
"""The key of the state before any item."""


class Sequence:
    """Prompt, output and stop rules of one request; the scheduler says which row holds its state."""

    def __init__(self, stream: Stream, tokenizer: Tokenizer | None) -> None:
        self.stream = stream
        self.request = stream.request
        self.row = -1
        self.num_source_left = 0 if self.request.source is None else len(self.request.source)
        """Items of the source that the state has not seen: all or none."""
        self.num_prefilled = 0
        """Prompt items already in the state."""
        self.prefix_key: bytes | None = ROOT
        """Under which the state after these items is saved; None where it is not."""
        self.num_output = 0
        self.last_item: Any = None
        self._reads_tokens = self.request.prompt.dtype == np.int64
        self._text = TextStream(tokenizer, self.request.stop_strings) if tokenizer and self._reads_tokens else None
        self.adjuster = LogitAdjuster(self.request.sampling, self.request.prompt.tolist() if self._reads_tokens else ())

    @property
    def members(self) -> tuple[Sequence, ...]:
        """Sequences that serve the same request, each with a row of its own."""
        return (self,)

    @property
    def num_rows(self) -> int:
        """Rows that are kept for this sequence, its own included."""
        return 1

    @property
    def num_top(self) -> int:
        """Most probable tokens that a step is to report; -1 for no log-probabilities at all."""
        return self.request.log_probabilities

    @property
    def is_stepwise(self) -> bool:
        """Whether each item must be seen before the next one is made."""
        return self.adjuster.changes

    @property
    def num_positions(self) -> int:
        """Most positions that prompt and output may take."""
        return len(self.request.prompt) + self.request.max_tokens

    @property
    def num_prompt_left(self) -> int:
        """Prompt items that the state has not seen."""
        return len(self.request.prompt) - self.num_prefilled

    @property
    def num_left(self) -> int:
        """Most items that may still be generated."""
        return self.request.max_tokens - self.num_output

    def begin_after(self, start: SavedRow, pool: StatePool) -> None:
        """Put a state that the request has brought into the sequence's row."""
        pool.load_row(self.row, start)
        self.num_prefilled = self.stream.num_cached = start.num_filled
        self.prefix_key = None

    def append(self, result: StepResult, row: int) -> Delta:
        """Take the items that a run made for this sequence, `row` being its place in the run."""
        items, reason = self._take(result.items[: self.num_left, row])
        if not items and reason is None:
            return Delta(error=DataLossError("the model's output is not finite (NaN or infinity) for this request"))
        delta = Delta(items=items, finish_reason=reason)
        if self._text is not None:
            self._decode(delta)
        if self.request.log_probabilities >= 0 and result.log_probabilities is not None:
            delta.log_probabilities = self._log_probabilities(result, row, delta.items)
        self.num_output += len(delta.items)
        self.last_item = delta.items[-1] if delta.items else None
        if delta.finish_reason is None and self.num_left <= 0:
            delta.finish_reason = "length"
        if delta.finish_reason is not None and self._text is not None:
            delta.text += self._text.flush()
        self.adjuster.append(delta.items)
        return delta

    def _take(self, made: Any) -> tuple[list[Any], FinishReason | None]:
        """The items up to an end token; none where the first is not a number."""
        if not self._reads_tokens:
            finite = np.isfinite(made).all(axis=1)
            return list(made) if finite.all() else [], None
        tokens: list[int] = made.tolist()
        if min(tokens) < 0:
            return [], None
        for place, token in enumerate(tokens):
            if token in self.request.end_tokens:
                return tokens[: place + 1], "stop"
        return tokens, None

    def _decode(self, delta: Delta) -> None:
        assert self._text is not None
        delta.text = self._text.feed(delta.items)
        if self._text.stopped_at is not None:
            delta.items = delta.items[: self._text.stopped_at - self.num_output]
            delta.finish_reason = "stop"

    def _log_probabilities(self, result: StepResult, row: int, items: list[Any]) -> list[TokenLogProbability]:
        assert result.log_probabilities is not None
        if result.top_tokens is None:
            return [TokenLogProbability(0, value) for value in result.log_probabilities[: len(items), row].tolist()]
        assert result.top_log_probabilities is not None
        num_top = self.request.log_probabilities
        return [
            TokenLogProbability(
                token,
                float(result.log_probabilities[step, row]),
                tuple(
                    zip(
                        result.top_tokens[step, row, :num_top].tolist(),
                        result.top_log_probabilities[step, row, :num_top].tolist(),
                        strict=True,
                    )
                ),
            )
            for step, token in enumerate(items)
        ]
