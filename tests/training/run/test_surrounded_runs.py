"""Runs with a tokenizer that puts tokens around a text, as BERT's does."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from statewise.bundles.manifest import Surround
from statewise_training.checkpoints.checkpoint import load_checkpoint
from statewise_training.config import TrainConfig
from statewise_training.data.dataset import prepare
from statewise_training.run.run import train
from tests.bert_like import CLS, PAD, SEP, WORDS, ids_of, save_bert_like
from tests.training.runs import error


def config_of(folder: Path, target: str, **changes: dict[str, Any]) -> TrainConfig:
    """Texts of one to six words, labelled by their first one; each `film` is a tag."""
    draw = random.Random(0)
    lines = []
    for _ in range(120):
        words = draw.choices(WORDS, k=draw.randint(1, 6))
        tags = ["film" if word == "film" else "O" for word in words]
        lines.append({"text": words, "label": words[0] < "dull", "tags": tags})
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    raw: dict[str, Any] = {
        "name": "surrounded",
        "plugin": "gru_encoder",
        "model": {"hidden_size": 16, "max_positions": 12},
        "data": {"kind": "labelled", "files": str(folder / "data.jsonl"), "target": target},
        "tokenizer": {"kind": "file", "file": str(save_bert_like(folder / "bert.json"))},
        "optimizer": {"learning_rate": 0.02},
        "trainer": {"max_steps": 30, "batch_size": 16, "sequence_length": 5, "accelerator": "cpu"},
        "output": str(folder / "run"),
    }
    for section, change in changes.items():
        raw[section] |= change
    return TrainConfig.model_validate(raw)


def rows_of(config: TrainConfig) -> list[list[int]]:
    """The items of every training row, without its padding."""
    sequences = prepare(config).train
    batch = sequences.batch(torch.arange(len(sequences)))
    return [row[:length].tolist() for row, length in zip(batch.items, batch.lengths, strict=True)]


def test_sequences_are_trained_between_their_special_tokens(tmp_path: Path) -> None:
    """Every row of a batch begins with [CLS] and ends with [SEP], and what is behind it is padding."""
    dataset = prepare(config_of(tmp_path, "label"))
    batch = dataset.train.batch(torch.arange(40))

    for row, length, size in zip(batch.items, batch.lengths.tolist(), dataset.train.lengths.tolist(), strict=False):
        assert length == size + 2
        assert (row[0], row[length - 1]) == (CLS, SEP)
        assert row[1 : length - 1].min() > SEP
        assert row[length:].tolist() == [PAD] * (len(row) - length)


def test_tags_are_learnt_of_the_text_alone(tmp_path: Path) -> None:
    """Each piece of a tagged text stands between special tokens, which have no target; together they are that long."""
    dataset = prepare(config_of(tmp_path, "tags"))
    batch = dataset.train.batch(torch.arange(len(dataset.train)))
    names = dataset.spec.labels or ()

    assert batch.lengths.max() == 5
    assert batch.mask.sum(1).max() == 3
    assert set(batch.items[~batch.mask].tolist()) == {PAD, CLS, SEP}
    is_film = batch.items[batch.mask] == ids_of("film")[0]
    assert torch.equal(is_film, batch.targets[batch.mask] == names.index("film"))
    assert batch.num_predictions == sum(map(len, dataset.train_documents)) == dataset.train.num_predictions


@pytest.mark.parametrize("target", ["label", "tags"])
def test_a_run_records_the_tokens_that_it_was_trained_with(tmp_path: Path, target: str) -> None:
    """The checkpoint puts the same tokens around a text, and the task is learnt."""
    config = config_of(tmp_path, target, trainer={"max_steps": 80})

    summary = train(config, console=Console(quiet=True))

    assert load_checkpoint(config.folder).special_tokens.surround == Surround(before=(CLS,), after=(SEP,))
    assert summary is not None
    assert summary.accuracy is not None
    assert summary.accuracy > 0.9


def test_truncation_leaves_room_for_the_special_tokens(tmp_path: Path) -> None:
    """Cut to four items, a text keeps two of its words and both special tokens; to two, nothing would be left."""
    assert max(map(len, rows_of(config_of(tmp_path, "label", data={"truncate_to": 4})))) == 4
    message = error(config_of(tmp_path, "label", data={"truncate_to": 2}))
    assert message.startswith("data.truncate_to: 2 items leave no room beside the 2 special tokens")


def test_limits_count_the_special_tokens(tmp_path: Path) -> None:
    """A text that would fit alone is refused with the number of tokens around it; pieces need room for their own."""
    message = error(config_of(tmp_path, "label", model={"max_positions": 7}))
    assert "has 8 items, 2 special tokens around the text included, but the model takes 7" in message
    message = error(config_of(tmp_path, "tags", trainer={"sequence_length": 2}))
    assert message.startswith("trainer.sequence_length: 2 items leave no room beside the 2 special tokens")


def test_sources_of_pairs_stand_between_their_special_tokens(tmp_path: Path) -> None:
    """An encoder-decoder is trained on sources with them, and targets with its own start and end."""
    lines = [{"source": f"{a} {b}", "target": f"{b} {a}"} for a in WORDS for b in WORDS]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = TrainConfig.model_validate(
        {
            "name": "pairs",
            "plugin": "gru_encoder_decoder",
            "model": {"hidden_size": 8, "max_source_positions": 4},
            "data": {"kind": "pairs", "files": str(tmp_path / "pairs.jsonl")},
            "tokenizer": {
                "kind": "file",
                "file": str(save_bert_like(tmp_path / "bert.json")),
                "start": "[CLS]",
                "end": "[SEP]",
            },
            "trainer": {"max_steps": 1, "accelerator": "cpu"},
            "output": str(tmp_path / "run"),
        }
    )

    batch = prepare(config).train.batch(torch.arange(8))
    short = config.model_copy(update={"model": {"hidden_size": 8, "max_source_positions": 3}})

    assert batch.source is not None
    assert (batch.source[:, 0] == CLS).all()
    assert (batch.source[:, 3] == SEP).all()
    assert "the source, with its special tokens, has 4 items, but the model takes 3" in error(short)
