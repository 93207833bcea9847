"""Text that a tokenizer does not know."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers

from statewise_training.config import ByteTokenizer, CharacterTokenizer, TrainConfig
from statewise_training.data.dataset import prepare
from statewise_training.data.tokenizers import TextEncoder, make_encoder
from statewise_training.data.unknown import describe_unknown
from statewise_training.run.run import train
from tests.bert_like import save_bert_like
from tests.training.runs import small_config


def described(encoder: TextEncoder, *texts: str) -> str | None:
    return describe_unknown(encoder, texts, [encoder.encode(text) for text in texts], "held-out")


def test_unknown_characters_are_counted_with_the_most_frequent_examples() -> None:
    """The share, the token that they become, and up to five of them with their counts."""
    encoder = make_encoder(CharacterTokenizer(), ["abc"])

    assert described(encoder, "abé", "éé☃xyzwz") == (
        "held-out text: 9 of 11 tokens are unknown to the tokenizer and become '<unknown>': "
        "'é' (3), 'z' (2), '☃' (1), 'x' (1), 'y' (1) …"
    )
    assert described(encoder, "a☃c") == (
        "held-out text: 1 of 3 tokens is unknown to the tokenizer and becomes '<unknown>': '☃' (1)"
    )


def test_known_text_is_no_news() -> None:
    """Nothing is said where all is known, or where a tokenizer knows everything."""
    assert described(make_encoder(CharacterTokenizer(), ["abc"]), "cab") is None
    assert described(make_encoder(ByteTokenizer(kind="bytes"), []), "☃") is None


def test_unigram_tokenizers_have_an_unknown_token_too() -> None:
    """Their file names it by id."""
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()

    assert described(TextEncoder(tokenizer, make_encoder(CharacterTokenizer(), []).special_tokens), "a b") == (
        "held-out text: 1 of 2 tokens is unknown to the tokenizer and becomes '<unk>': 'b' (1)"
    )


def test_a_run_reports_both_sides_of_its_data(tmp_path: Path) -> None:
    """Held-out text has characters that training text lacks; a given tokenizer may lack words of both."""
    (tmp_path / "text.txt").write_text("abcab" * 60 + "abcéa" * 10)
    characters = small_config(tmp_path, data__held_out=0.2)
    words = {"kind": "file", "file": str(save_bert_like(tmp_path / "bert.json"))}
    lines = [{"text": f"a fine {kind}", "label": kind} for kind in ("film", "play")] * 20
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, lines)))
    labelled = TrainConfig.model_validate(
        {
            "name": "words",
            "plugin": "gru_encoder",
            "data": {"kind": "labelled", "files": str(tmp_path / "labels.jsonl")},
            "tokenizer": words,
        }
    )

    assert [note.partition(":")[0] for note in prepare(labelled).notes] == ["training text", "held-out text"]
    (note,) = prepare(characters).notes
    assert note.startswith("held-out text: ")
    assert note.endswith("become '<unknown>': 'é' (10)")


def test_a_pairs_run_reports_sources_and_targets(tmp_path: Path) -> None:
    """The count is of both sides of the pairs together."""
    lines = [{"source": "aé", "target": "é"}, *({"source": f"{c}b", "target": "a"} for c in "abcd" * 3)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = {"kind": "pairs", "files": str(tmp_path / "pairs.jsonl"), "held_out": 0.5}
    notes = [
        note
        for seed in range(6)
        for note in prepare(
            small_config(tmp_path, data={**data, "split_seed": seed}, plugin="gru_encoder_decoder")
        ).notes
    ]

    assert any("'é' (2)" in note for note in notes)


def test_the_note_is_printed(tmp_path: Path, console: Console, printed: Callable[[], str]) -> None:
    """`statewise train` shows it before the first step."""
    (tmp_path / "text.txt").write_text("abcab" * 160 + "abcéa" * 10)

    train(small_config(tmp_path, trainer__max_steps=1), console=console)

    assert "held-out text: " in printed()
    assert "'é'" in printed()
