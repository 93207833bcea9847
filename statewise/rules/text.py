"""From token ids to text while a stream runs: only whole characters, and never part of a stop string.

Byte-level tokenizers go through a table of each token's bytes and an incremental UTF-8 decoder, which is
exact for any sequence and costs the same at every length. Every other tokenizer decodes a short window of the
latest ids.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer, decoders, pre_tokenizers

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

_WINDOW = 24
_CONTEXT = 4
"""Ids kept when a window is cut: decoders that join or strip spaces look one token back."""


def load_tokenizer(file: Path) -> Tokenizer:
    """Load a bundle's tokenizer for prompts: a text that spells a special token is only text, nothing is cut or padded.

    The first is a matter of safety (a prompt must not be able to end itself), and the file does not record it.
    """
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.encode_special_tokens = True
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


class TextStream:
    """Turns the ids of one stream into text, as soon as it is certain.

    `stopped` says that a stop string was met: the text given ends just before it, later ids are ignored, and
    `stopped_at` is the number of ids, counted from the stream's first, up to the one that completed it.

    Special tokens give no text. The pieces together are what the tokenizer gives for the whole sequence (cut
    at the stop string), however it was fed; only a decoder that takes back characters it has already given
    (ByteFallback, after invalid bytes) can differ.
    """

    def __init__(self, tokenizer: Tokenizer, stop_strings: Sequence[str] = ()) -> None:
        self.stopped = False
        self.stopped_at: int | None = None
        self._stop_strings = tuple(stop_strings)
        self._decoder = _decoder_for(tokenizer)
        self._num_fed = 0
        self._held = ""

    def feed(self, ids: Sequence[int]) -> str:
        """Return the text that has become certain with these ids."""
        if not self._stop_strings:
            self._num_fed += len(ids)
            return self._decoder.decode(ids)
        # One at a time, so that the id which completes a stop string is known.
        pieces = []
        for token in ids:
            if self.stopped:
                break
            self._num_fed += 1
            pieces.append(self._release(self._decoder.decode((token,))))
        return "".join(pieces)

    def flush(self) -> str:
        """Return the rest, when no more ids will come; an unfinished character becomes U+FFFD."""
        if self.stopped:
            return ""
        text = self._release(self._decoder.flush())
        rest, self._held = self._held, ""
        return text if self.stopped else text + rest

    def _release(self, new_text: str) -> str:
        if not new_text:
            return ""
        text = self._held + new_text
        found = [start for stop in self._stop_strings if (start := text.find(stop)) >= 0]
        if found:
            self.stopped, self.stopped_at, self._held = True, self._num_fed, ""
            return text[: min(found)]
        num_held = max((_num_begun(text, stop) for stop in self._stop_strings), default=0)
        cut = len(text) - num_held
        self._held = text[cut:]
        return text[:cut]


def _num_begun(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    start = max(0, len(text) - len(stop) + 1)
    while (start := text.find(stop[0], start)) >= 0:
        if stop.startswith(text[start:]):
            return len(text) - start
        start += 1
    return 0


class _Decoder(Protocol):
    def decode(self, ids: Sequence[int]) -> str: ...
    def flush(self) -> str: ...


def _decoder_for(tokenizer: Tokenizer) -> _Decoder:
    if isinstance(tokenizer.decoder, decoders.ByteLevel):
        return _ByteDecoder(_token_bytes(tokenizer))
    return _WindowDecoder(tokenizer)


class _ByteDecoder:
    """For byte-level tokenizers: the bytes of each token, through an incremental UTF-8 decoder."""

    def __init__(self, token_bytes: list[bytes]) -> None:
        self._token_bytes = token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def decode(self, ids: Sequence[int]) -> str:
        table = self._token_bytes
        size = len(table)
        return self._utf8.decode(b"".join([table[token] for token in ids if token < size]))

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


@lru_cache(maxsize=16)
def _token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """Return the bytes of each id; none for special tokens and for ids that name no token."""
    byte_of = _byte_level_alphabet()
    special = _special_ids(tokenizer)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    table = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for token, index in vocabulary.items():
        if index in special:
            continue
        # As the tokenizer's decoder does: a token with a character outside the alphabet stands for itself.
        inside = all(character in byte_of for character in token)
        table[index] = bytes(byte_of[character] for character in token) if inside else token.encode()
    return table


def _byte_level_alphabet() -> dict[str, int]:
    """Return the byte of each character (GPT-2: printable ones stand for themselves, others from U+0100)."""
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    printable = {chr(byte): byte for byte in range(256) if chr(byte) in alphabet}
    others = (byte for byte in range(256) if chr(byte) not in alphabet)
    return printable | {chr(256 + position): byte for position, byte in enumerate(others)}


@lru_cache(maxsize=16)
def _special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    added = tokenizer.get_added_tokens_decoder()
    return frozenset(index for index, token in added.items() if token.special)


class _WindowDecoder:
    """Streams text for any tokenizer: decodes the latest ids again and returns the text not returned before."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special = _special_ids(tokenizer)
        self._ids: list[int] = []
        self._text = ""
        self._num_given = 0

    def decode(self, ids: Sequence[int]) -> str:
        # Ids without text would push out of the window the ones that later text depends on.
        size = self._tokenizer.get_vocab_size()
        self._ids.extend(token for token in ids if token < size and token not in self._special)
        self._text = self._tokenizer.decode(self._ids)
        # Bytes of one character may be spread over up to four ids; until the last, the others show as U+FFFD.
        unfinished = min(len(self._text) - len(self._text.rstrip(REPLACEMENT)), 3)
        certain = self._text[self._num_given : len(self._text) - unfinished]
        self._num_given += len(certain)
        if len(self._ids) > _WINDOW:
            self._cut(unfinished)
        return certain

    def flush(self) -> str:
        rest = self._text[self._num_given :]
        self._num_given = len(self._text)
        return rest

    def _cut(self, unfinished: int) -> None:
        # Inside a run of unfinished characters there is no safe place to cut; a long one is invalid anyway.
        if unfinished and len(self._ids) < 4 * _WINDOW:
            return
        self._ids = self._ids[-_CONTEXT:]
        self._text = self._tokenizer.decode(self._ids)
        self._num_given = max(len(self._text) - unfinished, 0)
