"""Sequences as plain values into the arrays that a model reads, checked; errors name arguments."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from statewise.bundles.manifest import Surround
from statewise.client.items import Items, Text, Tokens, Vectors
from statewise.errors import DeadlineExceededError, InvalidRequestError
from statewise.model.spec import InputSpec, RealInput
from statewise_server.engine.limits import check_items, check_length

if TYPE_CHECKING:
    from statewise_server.engine.generation.engine import Engine
    from statewise_server.engine.whole_sequences.predictor import Predictor

NO_SURROUND = Surround()


@dataclass(frozen=True, slots=True, eq=False)
class ReadSequence:
    """One sequence as a model reads it."""

    items: NDArray[Any]
    """int64 `[time]` or float32 `[time, features]`, at least one item, those around it included."""
    num_before: int = 0
    """Tokens added before the items that were sent: a start token, or those before a text."""
    num_after: int = 0
    """Tokens added after a text."""
    spans: tuple[tuple[int, int], ...] = ()
    """Offsets of text, where asked for: the first character of each item and the one after its last."""


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads sequences for one input of a model."""

    model: str
    """Its name, for errors."""
    reads: InputSpec
    tokenizer: Tokenizer | None
    max_items: int
    """Items of the longest sequence, including the tokens around a text."""
    start: tuple[int, ...] = ()
    """Put before every sequence of tokens."""
    surround: Surround = NO_SURROUND
    """Put around a text; token ids are read as they are."""
    may_be_empty: bool = False
    """Whether the start token alone is a sequence."""
    with_spans: bool = False

    @classmethod
    def of_prompts(cls, engine: Engine) -> Reader:
        """The reader of a generating model's prompts."""
        special = engine.manifest.special_tokens
        return cls(
            engine.manifest.name,
            engine.manifest.model.input,
            engine.tokenizer,
            engine.limits.max_prompt_tokens,
            start=_some(special.start),
            may_be_empty=special.start is not None,
        )

    @classmethod
    def of_sources(cls, engine: Engine) -> Reader | None:
        """The reader of an encoder-decoder's sources; None for other models."""
        manifest, special = engine.manifest, engine.manifest.special_tokens
        if manifest.model.source is None or manifest.model.max_source_positions is None:
            return None
        return cls(
            manifest.name,
            manifest.model.source,
            engine.tokenizer,
            manifest.model.max_source_positions,
            surround=special.surround or NO_SURROUND,
        )

    @classmethod
    def of_inputs(cls, predictor: Predictor) -> Reader:
        """The reader of whole sequences: a start token before each where the model generates, else texts surrounded."""
        manifest, special = predictor.manifest, predictor.manifest.special_tokens
        return cls(
            manifest.name,
            manifest.model.input,
            predictor.tokenizer,
            predictor.max_items,
            start=_some(special.start) if manifest.model.generates else (),
            surround=NO_SURROUND if manifest.model.generates else special.surround or NO_SURROUND,
            with_spans=True,
        )

    def read(self, given: Items, field: str) -> ReadSequence:
        """Read one sequence. Raises InvalidRequestError, naming the field, before anything large is copied."""
        if isinstance(given, Vectors) != isinstance(self.reads, RealInput):
            raise InvalidRequestError(f"model {self.model!r} reads {wanted_kind(self.reads)}", field=field)
        if isinstance(given, Vectors):
            sequence = ReadSequence(self._vectors(given, field))
        elif isinstance(given, Text):
            sequence = self._text(given.text, field)
        else:
            sequence = self._tokens(given, field)
        check_items(sequence.items, self.reads, field)
        return sequence

    def _vectors(self, given: Vectors, field: str) -> NDArray[np.float32]:
        assert isinstance(self.reads, RealInput)
        features, count = self.reads.features, len(given.values)
        if given.features != features:
            raise InvalidRequestError(
                f"model {self.model!r} reads {features} features, got {given.features}", field=f"{field}.features"
            )
        if not count or count % features:
            raise InvalidRequestError(f"must hold time x {features} numbers, time at least 1; got {count}", field=field)
        check_length(count // features, self.max_items, field)
        return np.fromiter(given.values, np.float32, count).reshape(-1, features)

    def _tokens(self, given: Tokens, field: str) -> ReadSequence:
        self._check_content(len(given.ids), field)
        check_length(len(self.start) + len(given.ids), self.max_items, field)
        ids = np.fromiter(given.ids, np.int64, len(given.ids))
        return ReadSequence(np.concatenate([np.array(self.start, np.int64), ids]), len(self.start))

    def _text(self, text: str, field: str) -> ReadSequence:
        ids, spans = self._encode(text, field) if text else ([], ())
        self._check_content(len(ids), field)
        around = self.surround if ids else NO_SURROUND
        before, after = (*self.start, *around.before), around.after
        check_length(len(before) + len(ids) + len(after), self.max_items, field, around.num_tokens)
        return ReadSequence(np.array([*before, *ids, *after], np.int64), len(before), len(after), spans)

    def _encode(self, text: str, field: str) -> tuple[list[int], tuple[tuple[int, int], ...]]:
        if self.tokenizer is None:
            raise InvalidRequestError(
                f"model {self.model!r} has no tokenizer; send token ids in place of text", field=field
            )
        try:
            if self.with_spans:
                # The other ways to encode leave offsets out, or count them in bytes.
                encoding = self.tokenizer.encode(text, add_special_tokens=False)
                return encoding.ids, tuple(encoding.offsets)
            (encoding,) = self.tokenizer.encode_batch_fast([text], add_special_tokens=False)
        except (UnicodeEncodeError, TypeError) as error:
            raise InvalidRequestError(f"is not valid text: {error}", field=field) from error
        return encoding.ids, ()

    def _check_content(self, length: int, field: str) -> None:
        if length or self.may_be_empty:
            return
        raise InvalidRequestError(
            f"is empty; give at least one item (model {self.model!r} has no start token to begin from)"
            if not self.start
            else "is empty; give at least one item",
            field=field,
        )


def wanted_kind(reads: InputSpec) -> str:
    """Kinds of sequences that an input takes, for errors."""
    return "vectors" if isinstance(reads, RealInput) else "tokens or text"


def deadline_after(seconds: float | None) -> float | None:
    """The deadline in time.monotonic() seconds, if there is one. Raises DeadlineExceededError where it has passed."""
    if seconds is None:
        return None
    if seconds <= 0:
        raise DeadlineExceededError("the deadline had passed when the request came")
    return time.monotonic() + seconds


def num_characters(items: Sequence[Items | None]) -> int:
    """Characters of all texts, by which a caller decides whether to tokenize elsewhere."""
    return sum(len(given.text) for given in items if isinstance(given, Text))


def _some(token: int | None) -> tuple[int, ...]:
    return () if token is None else (token,)
