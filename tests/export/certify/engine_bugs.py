"""Bugs to plant between the graphs and a client, each a change of one real part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import statewise_server.engine.generation.batch as batch
import statewise_server.engine.generation.sequence as sequence_module
from statewise.rules.text import TextStream
from statewise_server.engine.generation.beam_search import BeamSearch
from statewise_server.engine.generation.prefix_cache import PrefixCache
from statewise_server.engine.generation.sequence import Sequence
from statewise_server.engine.request import TokenLogProbability
from statewise_server.engine.whole_sequences.batcher import Batcher
from statewise_server.runtime.one_shot import OneShotRunner
from statewise_server.runtime.state.pool import StatePool
from statewise_server.runtime.steps.adjustment import LogitAdjuster
from statewise_server.runtime.steps.runner import Runner, StepResult

Plant = Callable[[pytest.MonkeyPatch], None]


def change_entries(change: Callable[[TokenLogProbability], TokenLogProbability]) -> Plant:
    """Change each reported log-probability."""
    real = Sequence._log_probabilities

    def plant(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(Sequence, "_log_probabilities", lambda *given: [change(entry) for entry in real(*given)])

    return plant


halved_log_probabilities = change_entries(lambda e: replace(e, log_probability=e.log_probability / 2))
top_ids_off_by_one = change_entries(lambda e: replace(e, top=tuple((token + 1, p) for token, p in e.top)))
top_out_of_order = change_entries(lambda e: replace(e, top=e.top[::-1]))
another_tokens_entry = change_entries(lambda e: replace(e, token=e.token + 1))
log_probability_of_the_best = change_entries(lambda e: replace(e, log_probability=e.top[0][1] if e.top else 0.0))
no_top = change_entries(lambda e: replace(e, top=e.top[:1]))


def log_probability_of_the_row_before(patch: pytest.MonkeyPatch) -> None:
    """Each run reports the log-probabilities one row further on."""
    real = Runner.decode

    def decode(*given: Any, **options: Any) -> StepResult:
        result = real(*given, **options)
        assert result.log_probabilities is not None
        return replace(result, log_probabilities=np.roll(result.log_probabilities, 1, axis=1))

    patch.setattr(Runner, "decode", decode)


def prefix_of_another_prompt(patch: pytest.MonkeyPatch) -> None:
    """A hit loads the chunk that was saved first, whichever prompt it is of."""
    real = PrefixCache.load

    def load(self: PrefixCache, sequence: Sequence, pool: StatePool) -> None:
        real(self, sequence, pool)
        if sequence.num_prefilled:
            pool.load_row(sequence.row, next(iter(self._chunks.values())).state)

    patch.setattr(PrefixCache, "load", load)


def prefix_too_long_by_one(patch: pytest.MonkeyPatch) -> None:
    """The number of reused items counts one too many."""
    real = PrefixCache.load

    def load(self: PrefixCache, sequence: Sequence, pool: StatePool) -> None:
        real(self, sequence, pool)
        sequence.stream.num_cached += bool(sequence.num_prefilled)

    patch.setattr(PrefixCache, "load", load)


def served_with(**changes: Any) -> Plant:
    """Serve every request with other sampling parameters than it asks for."""
    real = Sequence.__init__

    def plant(patch: pytest.MonkeyPatch) -> None:
        def init(self: Sequence, *given: Any) -> None:
            real(self, *given)
            self.request = replace(self.request, sampling=replace(self.request.sampling, **changes))

        patch.setattr(Sequence, "__init__", init)

    return plant


ignored_seed = served_with(seed=0)
ignored_top_k = served_with(top_k=0)
ignored_temperature = served_with(temperature=1.0)


def noise_of_the_next_position(patch: pytest.MonkeyPatch) -> None:
    """The draw of each item reads the uniform number of the next one."""
    real = batch._noise

    def noise(runner: Runner, sequences: list[Sequence], count: int) -> Any:
        return real(runner, sequences, count + 1)[:, 1:]

    patch.setattr(batch, "_noise", noise)


def penalties_without_the_output(patch: pytest.MonkeyPatch) -> None:
    """Generated tokens are not counted."""
    patch.setattr(LogitAdjuster, "append", lambda self, tokens: None)


def moved_row_without_its_state(patch: pytest.MonkeyPatch) -> None:
    """A row that takes the place of one that left finds the state of that one."""
    patch.setattr(Runner, "copy_row", lambda self, source, target, **_: self.sampler.copy_row(source, target))


def moved_row_without_its_parameters(patch: pytest.MonkeyPatch) -> None:
    """A row that takes the place of one that left samples as that one did."""
    patch.setattr(Runner, "copy_row", lambda self, source, target, **given: self.pool.copy_row(source, target, **given))


def row_not_cleared(patch: pytest.MonkeyPatch) -> None:
    """A new sequence begins with the state of the last one in its row."""
    patch.setattr(StatePool, "clear_row", lambda self, row: None)


def end_token_ignored(patch: pytest.MonkeyPatch) -> None:
    """An end token is an item as any other."""
    real = Sequence._take

    def take(self: Sequence, made: Any) -> Any:
        self.request = replace(self.request, end_tokens=frozenset())
        return real(self, made)

    patch.setattr(Sequence, "_take", take)


def end_token_withheld(patch: pytest.MonkeyPatch) -> None:
    """The end token is not among the items."""
    real = Sequence._take

    def take(self: Sequence, made: Any) -> Any:
        items, reason = real(self, made)
        return (items[:-1] if reason == "stop" and len(items) > 1 else items), reason

    patch.setattr(Sequence, "_take", take)


def change_delta(change: Callable[[Any], None]) -> Plant:
    """Change what each step gives a stream."""
    real = Sequence.append

    def plant(patch: pytest.MonkeyPatch) -> None:
        def append(self: Sequence, result: StepResult, row: int) -> Any:
            delta = real(self, result, row)
            change(delta)
            return delta

        patch.setattr(Sequence, "append", append)

    return plant


def _confuse_reasons(delta: Any) -> None:
    delta.finish_reason = {"stop": "length", "length": "stop", None: None}[delta.finish_reason]


def _double_spaces(delta: Any) -> None:
    delta.text = delta.text + " "


wrong_finish_reason = change_delta(_confuse_reasons)
text_with_more_spaces = change_delta(_double_spaces)


def one_item_too_few(patch: pytest.MonkeyPatch) -> None:
    """Generation ends one item before the number that was asked for."""
    patch.setattr(Sequence, "num_left", property(lambda self: max(self.request.max_tokens - 1, 1) - self.num_output))


def stop_strings_ignored(patch: pytest.MonkeyPatch) -> None:
    """A stop string is text as any other."""
    patch.setattr(sequence_module, "TextStream", lambda tokenizer, _: TextStream(tokenizer, ()))


def stop_string_in_the_text(patch: pytest.MonkeyPatch) -> None:
    """The stop string itself is given."""
    real = TextStream.feed

    def feed(self: TextStream, ids: Any) -> str:
        was_stopped, text = self.stopped, real(self, ids)
        return text + self._stop_strings[0] if self.stopped and not was_stopped else text

    patch.setattr(TextStream, "feed", feed)


def scores_without_the_length(patch: pytest.MonkeyPatch) -> None:
    """Hypotheses are ranked by their log-probability alone."""
    patch.setattr(BeamSearch, "_score", lambda self, branch: branch.log_probability)


def answers_of_other_callers(patch: pytest.MonkeyPatch) -> None:
    """A batch's answers go to its callers in the opposite order."""
    real = OneShotRunner.run_rows
    patch.setattr(OneShotRunner, "run_rows", lambda *given: real(*given)[::-1])


def padding_in_the_scores(patch: pytest.MonkeyPatch) -> None:
    """Each score has one item of its padding."""
    real = Batcher.submit_all
    patch.setattr(
        Batcher,
        "submit_all",
        lambda self, rows, *deadline: real(self, [np.append(row, 0) for row in rows], *deadline),
    )
