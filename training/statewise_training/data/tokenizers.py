"""Tokenizers: characters, bytes, trained byte pairs, or one from a file; all saved as tokenizer.json."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from statewise.bundles.manifest import SpecialTokens, Surround
from statewise.errors import ConfigError
from statewise_training.config import (
    BPETokenizer,
    ByteTokenizer,
    CharacterTokenizer,
    FileTokenizer,
    TokenizerConfig,
)
from statewise_training.data.surround import surround_of

START, END, UNKNOWN = "<start>", "<end>", "<unknown>"

_PIECE = 1 << 20
"""Maximum number of characters encoded at once, so that a huge file does not become one huge list of tokens."""


@dataclass(frozen=True)
class TextEncoder:
    """Tokenizer with the start and end tokens of a document."""

    tokenizer: Tokenizer
    special_tokens: SpecialTokens

    @property
    def vocabulary_size(self) -> int:
        """Number of ids, special tokens included."""
        return int(self.tokenizer.get_vocab_size())

    @cached_property
    def surround(self) -> Surround:
        """Tokens that the tokenizer puts around a text that an encoder reads.

        Raises ConfigError where they differ between texts.
        """
        return surround_of(self.tokenizer, "tokenizer.file")

    def encode(self, text: str) -> NDArray[np.int32]:
        """Return the ids of a text, without special tokens: `<end>` spelled in a text is plain text."""
        encodings = self.tokenizer.encode_batch_fast(list(_pieces(text)), add_special_tokens=False)
        parts = [np.array(encoding.ids, np.int32) for encoding in encodings]
        return np.concatenate(parts) if parts else np.empty(0, np.int32)

    def encode_surrounded(self, text: str) -> NDArray[np.int32]:
        """Return the ids of a text with the tokens around it; empty for a text without a token."""
        ids = self.encode(text)
        return np.array([*self.surround.before, *ids, *self.surround.after], np.int32) if len(ids) else ids

    def pieces_of(self, text: str, token: int) -> list[str]:
        """Return the pieces of a text that are encoded as this token."""
        pieces = list(_pieces(text))
        encodings = self.tokenizer.encode_batch(pieces, add_special_tokens=False)
        return [
            piece[start:end]
            for piece, encoding in zip(pieces, encodings, strict=True)
            for found, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
            if found == token
        ]

    def encode_with_ends(self, text: str) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return the ids of a text, and for each its end index in characters, exclusive."""
        pieces = list(_pieces(text))
        shifts = np.cumsum([0, *map(len, pieces)])[:-1]
        encodings = self.tokenizer.encode_batch(pieces, add_special_tokens=False)
        ids = [np.array(encoding.ids, np.int32) for encoding in encodings]
        ends = [
            np.array([end for _, end in encoding.offsets], np.int64) + shift
            for encoding, shift in zip(encodings, shifts, strict=True)
        ]
        return np.concatenate(ids), np.concatenate(ends)


def make_encoder(config: TokenizerConfig, texts: Sequence[str]) -> TextEncoder:
    """Make the tokenizer of a run, fitted to its training texts; the same texts always give the same one.

    Raises ConfigError where a given file cannot be used.
    """
    match config:
        case CharacterTokenizer():
            tokenizer = characters(texts)
        case ByteTokenizer():
            tokenizer = byte_level()
        case BPETokenizer():
            tokenizer = byte_pairs(texts, config.vocabulary_size)
        case FileTokenizer():
            return _from_file(config)
    return _encoder(tokenizer, START, END)


def characters(texts: Sequence[str]) -> Tokenizer:
    """Make a tokenizer with one token per character in the texts; all others become `<unknown>`."""
    alphabet = sorted(set().union(*texts))
    vocabulary = {token: index for index, token in enumerate((START, END, UNKNOWN, *alphabet))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([_special(token) for token in (START, END, UNKNOWN)])
    return tokenizer


def byte_level() -> Tokenizer:
    """Make a tokenizer with one token per byte: ids 0 and 1 are `<start>` and `<end>`, 2 to 257 the bytes."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    # GPT-2's spelling: printable bytes stand for themselves, the others are shifted above U+0100, in order.
    printable = [byte for byte in range(256) if chr(byte) in alphabet]
    shifted = {byte: chr(256 + i) for i, byte in enumerate(b for b in range(256) if b not in printable)}
    spelled = [shifted.get(byte, chr(byte)) for byte in range(256)]
    vocabulary = {token: index for index, token in enumerate((START, END, *spelled))}
    return _with_byte_level(Tokenizer(models.BPE(vocabulary, [])))


def byte_pairs(texts: Sequence[str], vocabulary_size: int) -> Tokenizer:
    """Train a tokenizer of at most `vocabulary_size` tokens: all bytes, and the texts' most frequent byte pairs."""
    tokenizer = _with_byte_level(Tokenizer(models.BPE()))
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[_special(START), _special(END)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((piece for text in texts for piece in _pieces(text)), trainer)
    return tokenizer


def _with_byte_level(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    # An incomplete character decodes to U+FFFD.
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([_special(START), _special(END)])
    return tokenizer


def _special(token: str) -> AddedToken:
    return AddedToken(token, special=True, normalized=False)


def _from_file(config: FileTokenizer) -> TextEncoder:
    try:
        tokenizer = Tokenizer.from_file(str(config.file))
    except Exception as error:  # tokenizers raises bare Exception for every fault
        raise ConfigError(f"tokenizer.file: {config.file} is not a readable tokenizer.json: {error}") from error
    for field, token in (("start", config.start), ("end", config.end)):
        if token is not None and tokenizer.token_to_id(token) is None:
            raise ConfigError(f"tokenizer.{field}: {config.file} has no token {token!r}")
    return _encoder(tokenizer, config.start, config.end)


def _encoder(tokenizer: Tokenizer, start: str | None, end: str | None) -> TextEncoder:
    # Special tokens in a text are text; only the program inserts them as such. The file does not
    # record this.
    tokenizer.encode_special_tokens = True
    # A file may ask for padding and truncation, which would corrupt the data silently.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    ids = {name: tokenizer.token_to_id(token) for name, token in (("start", start), ("end", end)) if token}
    return TextEncoder(tokenizer, SpecialTokens(**ids))


def _pieces(text: str) -> Iterator[str]:
    """Cut the text into parts that end with a line where possible, so that no word is cut."""
    start = 0
    while start < len(text):
        end = min(start + _PIECE, len(text))
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or end
        yield text[start:end]
        start = end
