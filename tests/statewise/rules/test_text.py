"""Incremental text: the pieces are the whole, however the ids arrive."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from statewise.rules.text import TextStream, load_tokenizer

CORPUS = [
    "the cat sat on the mat",
    "naïve café, 10 €",
    "über 日本語 テキスト",
    "🙂🙃 smile 🏳️‍🌈",
    "stop! STOP? </end> \n\n",
] * 4


def make_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("日本", special=False), AddedToken("a b", special=False)])
    return tokenizer


def make_bytes() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def make_characters() -> Tokenizer:
    characters = sorted({character for line in CORPUS for character in line} | {"\ufffd"})
    vocabulary = {"<unk>": 0} | {character: i + 1 for i, character in enumerate(characters)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106 - the name of a token
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<start>"])
    return tokenizer


def make_byte_fallback() -> Tokenizer:
    pieces = ["▁the", "▁cat", "▁", "a", "b", "."]
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {p: 256 + i for i, p in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


TOKENIZERS = {"bpe": make_bpe(), "bytes": make_bytes(), "characters": make_characters()}
FALLBACK = make_byte_fallback()

names = st.sampled_from(sorted(TOKENIZERS))
texts = st.text(st.sampled_from(sorted(set("".join(CORPUS)))), max_size=80)


def split(data: st.DataObject, ids: list[int]) -> list[list[int]]:
    """Cut the ids into pieces of 0 to 5."""
    pieces = []
    while ids:
        size = data.draw(st.integers(0, 5))
        pieces.append(ids[:size])
        ids = ids[size:]
    return pieces


def cut_at_stop(pieces: list[str], stop_strings: list[str]) -> tuple[str, int | None]:
    """Apply the rule plainly: at the first piece that completes a stop string, cut before the earliest."""
    text = ""
    for number, piece in enumerate(pieces, start=1):
        text += piece
        found = [text.find(stop) for stop in stop_strings if stop in text]
        if found:
            return text[: min(found)], number
    return text, None


@given(st.data(), names)
def test_any_ids_give_the_tokenizers_own_text(data: st.DataObject, name: str) -> None:
    """Ids in any order and grouping, special and unknown ones among them, give what the whole gives."""
    tokenizer = TOKENIZERS[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() + 2), max_size=150))
    stream = TextStream(tokenizer)

    text = "".join(stream.feed(piece) for piece in split(data, ids)) + stream.flush()

    assert text == tokenizer.decode(ids, skip_special_tokens=True)


@given(names, texts)
def test_only_whole_characters_are_given(name: str, text: str) -> None:
    """However a character's bytes are spread over tokens, no piece holds a part of one."""
    tokenizer = TOKENIZERS[name]
    stream = TextStream(tokenizer)

    pieces = [stream.feed([token]) for token in tokenizer.encode(text).ids]

    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


@given(st.data(), names, texts)
def test_text_ends_just_before_the_first_stop_string(data: st.DataObject, name: str, text: str) -> None:
    """A stop string, though spread over tokens, is never given in part; the id that completes it is known."""
    tokenizer = TOKENIZERS[name]
    starts = st.integers(0, max(len(text) - 1, 0))
    inside = st.builds(lambda i, n: text[i : i + n], starts, st.integers(1, 6)).filter(bool)
    strangers = st.sampled_from(["the mat", "日語", "\n\n\n", "aab"])
    stop_strings = data.draw(st.lists(inside | strangers if text else strangers, min_size=1, max_size=3))
    ids = tokenizer.encode(text).ids
    plain = TextStream(tokenizer)
    expected, expected_at = cut_at_stop([plain.feed([token]) for token in ids], stop_strings)
    stream = TextStream(tokenizer, stop_strings)

    given_text = "".join(stream.feed(piece) for piece in split(data, ids))

    assert expected.startswith(given_text)
    assert given_text + stream.flush() == expected
    assert (stream.stopped, stream.stopped_at) == (expected_at is not None, expected_at)


@given(st.lists(st.sampled_from(["the", "cat", "日", "🙂", "ab.", "é"]), min_size=1, max_size=60))
def test_byte_fallback_waits_for_the_last_byte(words: list[str]) -> None:
    """A tokenizer that falls back to bytes gives the same text, and U+FFFD only where the text has it."""
    ids = FALLBACK.encode(" ".join(words)).ids
    stream = TextStream(FALLBACK)

    pieces = [stream.feed([token]) for token in ids]

    assert "".join(pieces) + stream.flush() == FALLBACK.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)


def test_text_that_could_begin_a_stop_string_is_given_once_it_does_not() -> None:
    """`ST` waits while it could become STOP, and comes out when it cannot."""
    tokenizer = TOKENIZERS["bytes"]
    stream = TextStream(tokenizer, ["STOP"])

    pieces = [stream.feed(tokenizer.encode(text).ids) for text in ("a S", "T", "x", "ST")]

    assert pieces == ["a ", "", "STx", ""]
    assert stream.flush() == "ST"


def test_ids_after_the_stop_string_are_ignored() -> None:
    """A stopped stream gives nothing more."""
    tokenizer = TOKENIZERS["bytes"]
    stream = TextStream(tokenizer, ["."])

    assert stream.feed(tokenizer.encode("end. more").ids) == "end"
    assert stream.feed(tokenizer.encode("more").ids) + stream.flush() == ""
    assert stream.stopped_at == 4


@pytest.mark.parametrize("make", [make_bytes, make_byte_fallback])
def test_endless_invalid_bytes_hold_back_little(make) -> None:
    """A model that only ever gives invalid bytes neither blocks its text nor makes each token dearer."""
    tokenizer = make()
    invalid = tokenizer.token_to_id("<0xFF>") or tokenizer.token_to_id("ÿ")
    stream = TextStream(tokenizer)

    given_text = "".join(stream.feed([invalid]) for _ in range(2000))

    assert len(given_text) >= 1900
    assert set(given_text) == {"\ufffd"}


def test_prompt_that_spells_a_special_token_is_text(tmp_path: Path) -> None:
    """A loaded tokenizer never makes a special token of what a user wrote, and cuts nothing."""
    tokenizer = make_bpe()
    tokenizer.enable_truncation(2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))

    ids = load_tokenizer(tmp_path / "tokenizer.json").encode("a <end> b").ids

    assert tokenizer.token_to_id("<end>") not in ids
    assert len(ids) > 2
