"""Text of served tokens against the tokenizer's own decoding of the whole sequence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders

from statewise_export.certify.check import Outcome
from statewise_export.certify.served.run import Served
from statewise_export.certify.trial import Trial

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def tokenizer_of(trial: Trial) -> Tokenizer | None:
    """The checkpoint's tokenizer; None where the items are no text."""
    file = trial.checkpoint.tokenizer_file
    return Tokenizer.from_file(str(file)) if file else None


def decode(tokenizer: Tokenizer, items: Iterable[int]) -> str:
    """The text of a whole sequence; ids beyond the tokenizer's have none."""
    size = tokenizer.get_vocab_size()
    text: str = tokenizer.decode([int(token) for token in items if token < size], skip_special_tokens=True)
    return text


def same_text(tokenizer: Tokenizer, actual: str, expected: str) -> bool:
    """Whether texts are equal; up to invalid bytes, which only byte-level decoders show alike in a stream."""
    if not isinstance(tokenizer.decoder, decoders.ByteLevel) and REPLACEMENT in expected + actual:
        length = min(text.find(REPLACEMENT) for text in (actual, expected) if REPLACEMENT in text)
        return actual[:length] == expected[:length]
    return actual == expected


def text_outcomes(trial: Trial, every: Sequence[Served]) -> list[Outcome]:
    """The text of every answer."""
    tokenizer = tokenizer_of(trial)
    if tokenizer is None:
        return []
    pairs = [(served.answer.text, decode(tokenizer, served.items)) for served in every]
    wrong = [
        f"{actual!r}, expected {expected!r}" for actual, expected in pairs if not same_text(tokenizer, actual, expected)
    ]
    figure = wrong[0] if wrong else f"{sum(len(text) for text, _ in pairs)} characters in {len(pairs)} answers"
    return [Outcome("served: text", not wrong, figure)]
