from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from statewise.errors import ConfigError
from statewise.rules.text import load_tokenizer
from statewise_training.config import BPETokenizer, ByteTokenizer, CharacterTokenizer, FileTokenizer
from statewise_training.data import tokenizers
from statewise_training.data.tokenizers import make_encoder

TEXTS = ["def f(x):\r\n\treturn x + 1\n\n", "naïve café, 日本語 <end> \N{GRINNING FACE}"]
BYTES = make_encoder(ByteTokenizer(kind="bytes"), TEXTS)
BPE = make_encoder(BPETokenizer(kind="bpe", vocabulary_size=300), TEXTS)
CHARACTERS = make_encoder(CharacterTokenizer(), TEXTS)


@pytest.mark.parametrize("encoder", [BYTES, BPE], ids=["bytes", "bpe"])
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@settings(max_examples=100, deadline=None)
def test_bytes_and_bpe_lose_nothing(encoder: tokenizers.TextEncoder, text: str) -> None:
    """Any text, seen in training or not, decodes to itself."""
    assert text == encoder.tokenizer.decode(encoder.encode(text).tolist())


@given(text=st.text(sorted(set("".join(TEXTS)))))
@settings(max_examples=100, deadline=None)
def test_known_characters_lose_nothing(text: str) -> None:
    """A text of characters that the training text has decodes to itself, one id per character."""
    ids = CHARACTERS.encode(text).tolist()

    assert len(text) == len(ids)
    assert text == CHARACTERS.tokenizer.decode(ids)


def test_an_unknown_character_is_one_unknown_token() -> None:
    """A character outside the training text becomes <unknown>, and its neighbours stay."""
    ids = CHARACTERS.encode("xZx").tolist()

    assert CHARACTERS.tokenizer.token_to_id("<unknown>") == ids[1]
    assert ids[0] == ids[2] != ids[1]


def test_byte_ids_follow_the_bytes() -> None:
    """Byte b is id b + 2, after <start> and <end>; the vocabulary is complete."""
    assert BYTES.encode("\0\x7fÿ").tolist() == [0x00 + 2, 0x7F + 2, 0xC3 + 2, 0xBF + 2]
    assert BYTES.vocabulary_size == 258


def test_a_special_token_spelled_in_a_text_is_text() -> None:
    """A document that contains `<end>` does not end there, and decodes to itself."""
    for encoder in (BYTES, BPE, CHARACTERS):
        ids = encoder.encode("<end>").tolist()

        assert encoder.special_tokens.end not in ids
        assert encoder.tokenizer.decode(ids) == "<end>"


def test_a_saved_tokenizer_gives_the_same_ids_and_hides_special_tokens(tmp_path: Path) -> None:
    """tokenizer.json, read by the library alone, decodes without special tokens; half a character shows as U+FFFD."""
    for encoder in (BYTES, BPE, CHARACTERS):
        path = tmp_path / "tokenizer.json"
        encoder.tokenizer.save(str(path))
        plain = Tokenizer.from_file(str(path))
        ids = encoder.encode("café <end>").tolist()
        framed = [encoder.special_tokens.start, *ids, encoder.special_tokens.end]

        assert plain.decode(framed, skip_special_tokens=True) == "café <end>"
        assert ids == load_tokenizer(path).encode("café <end>", add_special_tokens=False).ids
    assert BYTES.tokenizer.decode(BYTES.encode("é").tolist()[:1]) == "\N{REPLACEMENT CHARACTER}"


def test_the_same_texts_give_the_same_tokenizer() -> None:
    """Training byte pairs twice gives one vocabulary, of the size asked for at most."""
    again = make_encoder(BPETokenizer(kind="bpe", vocabulary_size=300), TEXTS)

    assert BPE.tokenizer.to_str() == again.tokenizer.to_str()
    assert 258 < BPE.vocabulary_size <= 300


def test_a_long_text_is_encoded_in_parts_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the parts, the ids spell the whole text."""
    monkeypatch.setattr(tokenizers, "_PIECE", 7)
    text = TEXTS[0] + TEXTS[1] * 3

    for encoder in (BYTES, BPE, CHARACTERS):
        assert text == encoder.tokenizer.decode(encoder.encode(text).tolist())


def test_a_tokenizer_file_keeps_its_own_special_tokens(tmp_path: Path) -> None:
    """A given tokenizer.json is used as it is, without its padding and truncation; its start and end are named."""
    path = tmp_path / "tokenizer.json"
    copy = Tokenizer.from_str(BPE.tokenizer.to_str())
    copy.enable_truncation(2)
    copy.enable_padding(length=9)
    copy.save(str(path))

    encoder = make_encoder(FileTokenizer(kind="file", file=path, end="<end>"), [])

    assert (encoder.special_tokens.start, encoder.special_tokens.end) == (None, 1)
    assert encoder.encode(TEXTS[0]).tolist() == BPE.encode(TEXTS[0]).tolist()


@pytest.mark.parametrize(("fields", "part"), [({"start": "<s>"}, "tokenizer.start"), ({}, "tokenizer.file")])
def test_a_bad_tokenizer_file_is_named(tmp_path: Path, fields: dict[str, str], part: str) -> None:
    """A file that is no tokenizer, or lacks a token that is asked for, is refused."""
    path = tmp_path / "tokenizer.json"
    path.write_text(BPE.tokenizer.to_str() if fields else "{}")

    with pytest.raises(ConfigError, match=part):
        make_encoder(FileTokenizer(kind="file", file=path, **fields), [])
