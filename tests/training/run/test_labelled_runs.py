"""Runs on labelled data, from file to figures."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from statewise_training.checkpoints.checkpoint import load_checkpoint
from statewise_training.config import TrainConfig
from statewise_training.data.dataset import prepare
from statewise_training.run.evaluation import Summary
from statewise_training.run.run import train
from tests.training.runs import error


def records(num_records: int = 300) -> list[dict[str, Any]]:
    """Texts of a, b and c: which is more frequent, a or b; every a before a b; the share of a."""
    draw = random.Random(0)
    found = []
    for _ in range(num_records):
        text = "".join(draw.choices("abc", k=draw.randint(3, 20)))
        before = [[i, i + 1, "before"] for i in range(len(text) - 1) if text[i : i + 2] == "ab"]
        label = "a" if text.count("a") > text.count("b") else "b"
        found.append({"text": text, "label": label, "tags": before, "value": text.count("a") / len(text)})
    return found


def config_of(folder: Path, plugin: str, model: dict[str, Any], data: dict[str, Any]) -> TrainConfig:
    path = folder / "data.jsonl"
    if not path.exists():
        path.write_text("\n".join(map(json.dumps, records())))
    return TrainConfig.model_validate(
        {
            "name": "toy",
            "plugin": plugin,
            "model": {"hidden_size": 16, **model},
            "data": {"kind": "labelled", "files": str(path), **data},
            "optimizer": {"learning_rate": 0.02},
            "trainer": {
                "max_steps": 60,
                "validation_every": 30,
                "accelerator": "cpu",
                "sequence_length": 24,
            },
            "output": str(folder / "run"),
        }
    )


def run(config: TrainConfig) -> Summary:
    summary = train(config, console=Console(quiet=True))
    assert summary is not None
    return summary


@pytest.mark.parametrize(
    ("plugin", "model", "target"),
    [
        ("gru_encoder", {}, "label"),
        ("transformer_encoder", {"num_layers": 1, "num_heads": 2, "positions": "none"}, "label"),
        ("lstm_encoder", {"dropout": 0.1, "dropout_kind": "locked", "num_layers": 2}, "tags"),
        ("gru_encoder", {"head": "embedding", "vector_size": 8}, "label"),
    ],
)
def test_a_toy_task_is_learnt(tmp_path: Path, plugin: str, model: dict[str, Any], target: str) -> None:
    """Held-out accuracy is far above the most frequent label's, and figures, log and pictures agree with it."""
    config = config_of(tmp_path, plugin, model, {"target": target})

    summary = run(config)

    assert summary.accuracy is not None
    assert summary.accuracy > (0.97 if target == "tags" else 0.9) > summary.baselines["most_frequent_label"]
    confusion = np.array(summary.confusion)
    assert np.trace(confusion) / confusion.sum() == pytest.approx(summary.accuracy)
    assert confusion.sum() == summary.held_out_items
    assert [figures.held_out for figures in (summary.labels or {}).values()] == confusion.sum(axis=1).tolist()
    assert all((config.folder / name).read_bytes().startswith(b"\x89PNG") for name in ("loss.png", "confusion.png"))
    logged = "validation_accuracy" in (config.folder / "metrics.csv").read_text()
    assert logged is (model.get("head") != "embedding")


def test_values_are_learnt(tmp_path: Path) -> None:
    """The squared error is a small part of the mean's; there is no talk of labels."""
    summary = run(config_of(tmp_path, "gru_encoder", {}, {"target": "value"}))

    assert summary.validation_loss < 0.1 * summary.baselines["mean"]
    assert summary.accuracy is summary.labels is None


def test_standardised_vectors_are_served_raw(tmp_path: Path) -> None:
    """The module that is exported reads the data's own units, and says the same of it."""
    draw = np.random.default_rng(0)
    items = (draw.normal(size=(60, 5, 2)) * [100, 0.01] + [1000, 0]).astype(np.float32)
    np.savez(tmp_path / "data.npz", items=items, labels=(items[:, :, 1].mean(1) > 0).astype(int))
    data = {"files": str(tmp_path / "data.npz"), "standardize": True}
    config = config_of(tmp_path, "gru_encoder", {}, data)
    assert run(config).accuracy == 1.0
    checkpoint, dataset = load_checkpoint(config.folder), prepare(config)
    batch = dataset.held_out.batch(torch.arange(6))
    scale = checkpoint.standardization
    assert scale is not None
    raw = batch.items * torch.tensor(scale.deviation) + torch.tensor(scale.mean)
    served = checkpoint.in_raw_units()

    with torch.inference_mode():
        expected = checkpoint.module.head(checkpoint.module(batch.items, batch.lengths, ())[0])
        actual = served.head(served(raw, batch.lengths, ())[0])

    torch.testing.assert_close(actual, expected, atol=1e-3, rtol=0)


def test_each_label_is_on_both_sides_of_the_split(tmp_path: Path) -> None:
    """About the same share of each label is held out, and a label that comes once is trained on."""
    rows = [{"text": "ab", "label": label} for label in ["x"] * 80 + ["y"] * 20 + ["z"]]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))

    dataset = prepare(config_of(tmp_path, "gru_encoder", {}, {}))

    assert dataset.spec.labels == ("x", "y", "z")
    assert np.bincount(dataset.held_out.targets, minlength=3).tolist() == [8, 2, 0]
    assert np.bincount(dataset.train.targets, minlength=3).tolist() == [72, 18, 1]


def test_labels_that_are_numbers_stand_in_their_order(tmp_path: Path) -> None:
    """Ten comes after nine."""
    rows = [{"text": "ab", "label": label} for label in range(11)] * 2
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))

    dataset = prepare(config_of(tmp_path, "gru_encoder", {}, {}))

    assert dataset.spec.labels == tuple(map(str, range(11)))


@pytest.mark.parametrize("tokenizer", ["characters", "bytes", "bpe"])
def test_tags_reach_the_tokens_of_their_characters(tmp_path: Path, tokenizer: str) -> None:
    """Whatever a token is, its label is that of the text it stands for, also behind wide characters."""
    words = "der schöne 日本 word in between the other words"
    spans = [[words.index(word), words.index(word) + len(word), "noun"] for word in ("日本", "word", "words")]
    rows = [{"text": words, "tags": spans}] * 20
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = config_of(tmp_path, "gru_encoder", {}, {"target": "tags"})
    config = config.model_validate({**config.model_dump(), "tokenizer": {"kind": tokenizer}})

    dataset = prepare(config)

    assert dataset.encoder is not None
    ids = dataset.train_documents[0]
    is_noun = dataset.train.targets[: len(ids)].numpy() == dataset.spec.labels.index("noun")
    nouns = dataset.encoder.tokenizer.decode(ids[is_noun].tolist())
    assert "".join(nouns.split()) == "日本wordwords"


@pytest.mark.parametrize(
    ("plugin", "model", "data", "part"),
    [
        (
            "gru",
            {},
            {},
            "holds labelled sequences, but a gru of this configuration learns from sequences",
        ),
        ("gru_encoder", {"head": "embedding"}, {"target": "tags"}, "learnt from a label per sequence"),
        ("gru_encoder", {"head": "labels"}, {"target": "value"}, "model.head: is labels, but the data gives value"),
        ("gru_encoder", {"max_positions": 4}, {}, "items, but the model takes 4; raise model.max_positions"),
        ("gru_encoder", {"max_positions": 4}, {"target": "tags"}, "trainer.sequence_length: "),
        ("gru_encoder", {}, {"held_out": 0.001}, "leaves none held out"),
        ("gru_encoder", {"labels": ["p", "q"]}, {}, "the data gives ['a', 'b']"),
        ("gru_encoder", {}, {"target_field": "text"}, ""),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, plugin: str, model: dict[str, Any], data: dict[str, Any], part: str
) -> None:
    """Family, head and data must be of one kind, and the message says which are not."""
    if part:
        assert part in error(config_of(tmp_path, plugin, model, data))
    else:
        assert len(prepare(config_of(tmp_path, plugin, model, data)).spec.labels or ()) > 100


def test_long_sequences_may_be_cut(tmp_path: Path) -> None:
    """With truncate_to no sequence has more items."""
    dataset = prepare(config_of(tmp_path, "gru_encoder", {}, {"truncate_to": 5}))

    assert int(dataset.train.lengths.max()) == 5


def test_encoders_need_labelled_data(tmp_path: Path) -> None:
    """On plain text the message names the kind of data that has labels."""
    config = config_of(tmp_path, "lstm_encoder", {}, {})
    plain = {**config.model_dump(mode="json"), "data": {"kind": "jsonl", "files": [str(tmp_path / "data.jsonl")]}}

    assert "choose data.kind labelled" in error(TrainConfig.model_validate(plain))
