"""Tokens that a tokenizer's post-processor puts around a text, found by encoding some texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from statewise.bundles.manifest import SpecialTokens, Surround
from statewise.errors import ConfigError
from statewise.model.spec import ModelSpec, TokenInput
from statewise.rules.text import load_tokenizer

_WORDS = ("a", "Hello, world", "1 2 3")
_NUM_OWN = 16
"""Number of vocabulary tokens tried as texts, in case the tokenizer knows no ordinary word."""


def surround_of(tokenizer: Tokenizer, name: str) -> Surround:
    """Return the tokens that the post-processor puts before and after every text.

    The tokenizer must neither truncate nor pad; `name` stands for it in errors. Raises ConfigError where the tokens
    differ between texts.
    """
    found: set[tuple[tuple[int, ...], tuple[int, ...]]] | None = None
    for text in _texts(tokenizer):
        try:
            bare, whole = (tokenizer.encode(text, add_special_tokens=added).ids for added in (False, True))
        except Exception:  # noqa: S112 # tokenizers raises bare Exception for a word that a vocabulary lacks
            continue
        places = range(len(whole) - len(bare) + 1)
        splits = {
            (tuple(whole[:place]), tuple(whole[place + len(bare) :]))
            for place in places
            if whole[place : place + len(bare)] == bare
        }
        found = splits if found is None else found & splits
    if found is None or len(found) != 1:
        raise ConfigError(
            f"{name}: its post-processor does not put fixed tokens before and after every text, and the server can add "
            "no others; give it a template such as [CLS] $A [SEP], or remove it"
        )
    ((before, after),) = found
    return Surround(before=before, after=after)


def _texts(tokenizer: Tokenizer) -> Iterator[str]:
    # An empty text gives only the added tokens, which fit any split into before and after.
    yield ""
    yield from _WORDS
    added = tokenizer.get_added_tokens_decoder()
    own = [token for token in sorted(tokenizer.get_vocab().values()) if token not in added]
    yield from (tokenizer.decode([token]) for token in own[:_NUM_OWN])


def encoder_vocabulary(spec: ModelSpec) -> int | None:
    """Return the vocabulary size of the encoder that reads texts whole; None for a model without one."""
    reads = spec.source if spec.generates else spec.input
    return reads.vocabulary_size if isinstance(reads, TokenInput) else None


def read_tokenizer(file: Path) -> Tokenizer:
    """Load a tokenizer as the server does. Raises ConfigError for an invalid file."""
    try:
        return load_tokenizer(file)
    except Exception as error:  # tokenizers raises bare Exception for every fault
        raise ConfigError(f"{file} is not a readable tokenizer.json: {error}") from error


def with_surround(special_tokens: SpecialTokens, spec: ModelSpec, tokenizer_file: Path | None) -> SpecialTokens:
    """Complete the special tokens with the ones around a text, taken from the tokenizer unless given.

    Raises ConfigError for a model that cannot use them, and for tokens outside its vocabulary.
    """
    vocabulary_size, surround = encoder_vocabulary(spec), special_tokens.surround
    if vocabulary_size is None:
        if surround is not None:
            raise ConfigError("special_tokens.surround: this model has no encoder that reads texts; leave it out")
        return special_tokens
    if surround is None:
        if tokenizer_file is None:
            return special_tokens
        surround = surround_of(read_tokenizer(tokenizer_file), str(tokenizer_file))
    outside = [token for token in (*surround.before, *surround.after) if token >= vocabulary_size]
    if outside:
        raise ConfigError(
            f"special_tokens.surround: id {outside[0]} is outside the model's vocabulary (0 to {vocabulary_size - 1}); "
            "give the model's own tokenizer"
        )
    return special_tokens.model_copy(update={"surround": surround})
