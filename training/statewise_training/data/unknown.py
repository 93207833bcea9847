"""Text unknown to a tokenizer: every unknown piece becomes the same token."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

import numpy as np
from tokenizers import models

from statewise_training.data.chunks import Items
from statewise_training.data.tokenizers import TextEncoder

_NUM_EXAMPLES = 5


def describe_unknown(encoder: TextEncoder, texts: Sequence[str], ids: Sequence[Items], side: str) -> str | None:
    """Return a note on the unknown tokens of some texts, with the most frequent ones; None if there are none.

    `ids` encode the texts, without or with special tokens; `side` names the part of the data: training, held-out.
    """
    unknown = unknown_id(encoder)
    if unknown is None:
        return None
    counts = [int(np.count_nonzero(one == unknown)) for one in ids]
    count, total = sum(counts), sum(map(len, ids))
    if not count:
        return None
    found: Counter[str] = Counter()
    for text, contained in zip(texts, counts, strict=True):
        if contained:
            found.update(encoder.pieces_of(text, unknown))
    examples = ", ".join(f"{piece!r} ({number})" for piece, number in found.most_common(_NUM_EXAMPLES))
    more = " …" if len(found) > _NUM_EXAMPLES else ""
    verbs = ("is", "becomes") if count == 1 else ("are", "become")
    return (
        f"{side} text: {count:,} of {total:,} tokens {verbs[0]} unknown to the tokenizer and {verbs[1]} "
        f"{encoder.tokenizer.id_to_token(unknown)!r}: {examples}{more}"
    )


Side = tuple[Sequence[str], Sequence[Items]]
"""Texts and their ids."""


def notes_on(encoder: TextEncoder, train: Side, held_out: Side) -> tuple[str, ...]:
    """Return the notes on both sides of the split."""
    notes = (describe_unknown(encoder, *train, "training"), describe_unknown(encoder, *held_out, "held-out"))
    return tuple(note for note in notes if note is not None)


def unknown_id(encoder: TextEncoder) -> int | None:
    """Return the id of the unknown token; None if the tokenizer has none."""
    model = encoder.tokenizer.model
    if isinstance(model, models.Unigram):
        found: int | None = json.loads(encoder.tokenizer.to_str())["model"].get("unk_id")
        return found
    token = getattr(model, "unk_token", None)
    return None if token is None else encoder.tokenizer.token_to_id(token)
