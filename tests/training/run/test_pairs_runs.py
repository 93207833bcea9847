"""Runs over pairs: batches, training, figures, and what the checkpoint keeps."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from statewise.errors import ConfigError
from statewise.rules.sampling import GREEDY
from statewise_training.checkpoints.checkpoint import load_checkpoint
from statewise_training.config import TrainConfig
from statewise_training.data.dataset import prepare
from statewise_training.reference.decoding import ReferenceDecoder
from statewise_training.run.run import train

QUIET = Console(quiet=True)


def config(folder: Path, **changes: object) -> TrainConfig:
    """Build a run that learns to spell words of up to five letters backwards."""
    folder.mkdir(exist_ok=True)
    draw = random.Random(0)
    words = {"".join(draw.choices("abcde", k=draw.randint(1, 5))) for _ in range(600)}
    lines = (json.dumps({"source": word, "target": word[::-1]}) for word in sorted(words))
    (folder / "words.jsonl").write_text("\n".join(lines))
    raw = {
        "name": "backwards",
        "plugin": "gru_encoder_decoder",
        "model": {"hidden_size": 32, "attention": "bahdanau", "max_source_positions": 5},
        "data": {"kind": "pairs", "files": str(folder / "words.jsonl"), "held_out": 0.1},
        "optimizer": {"learning_rate": 0.01},
        "trainer": {"max_steps": 200, "batch_size": 32, "validation_every": 100, "accelerator": "cpu"},
        "output": str(folder / "run"),
    }
    return TrainConfig.model_validate(raw | changes)


def test_batches_hold_whole_pairs(tmp_path: Path) -> None:
    """The decoder reads start and target, and gives target and end, beside the source of its own row."""
    dataset = prepare(config(tmp_path))
    encoder = dataset.encoder
    assert encoder is not None
    special = encoder.special_tokens

    batch = dataset.train.batch(torch.tensor([5, 0, 9]))

    for row in range(3):
        source = encoder.tokenizer.decode(batch.source[row, : batch.source_lengths[row]].tolist())
        length = int(batch.lengths[row])
        assert length == len(source) + 1
        assert batch.items[row, 0] == special.start
        assert encoder.tokenizer.decode(batch.items[row, 1:length].tolist()) == source[::-1]
        assert batch.targets[row, : length - 1].tolist() == batch.items[row, 1:length].tolist()
        assert batch.targets[row, length - 1] == special.end
        assert not batch.source[row, batch.source_lengths[row] :].any()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train the run once; its folder."""
    settings = config(tmp_path_factory.mktemp("pairs"))
    train(settings, console=QUIET)
    return settings.folder


def test_a_run_learns_and_says_how_much_is_exact(run: Path) -> None:
    """Words that it has not seen come out backwards."""
    summary = json.loads((run / "summary.json").read_text())

    assert summary["exact_match"] > 0.6
    assert summary["exact_match_pairs"] > 20
    assert summary["bits_per_character"] < summary["baselines"]["bigram"]


def test_exact_match_is_what_the_reference_decodes(run: Path) -> None:
    """Held-out pairs lie in the checkpoint, with start and end tokens; greedy decoding gives that share of them."""
    checkpoint = load_checkpoint(run)
    pairs = checkpoint.held_out_pairs()
    assert pairs is not None
    decoder = ReferenceDecoder(checkpoint.module, checkpoint.plugin.spec(checkpoint.config))
    start = [np.array([checkpoint.special_tokens.start])] * len(pairs)

    rows, _ = decoder.generate(start, [GREEDY] * len(pairs), 6, [source for source, _ in pairs])

    targets = [target[1:].tolist() for _, target in pairs]
    exact = [row[: len(target)].tolist() == target for row, target in zip(rows, targets, strict=True)]
    summary = json.loads((run / "summary.json").read_text())
    assert np.mean(exact) == pytest.approx(summary["exact_match"])
    assert all(target[-1] == checkpoint.special_tokens.end for target in targets)
    assert checkpoint.held_out() is None


@pytest.mark.parametrize(
    ("model", "part"),
    [
        ({"max_source_positions": 4}, r"words\.jsonl, line \d+: the source has 5 items, but the model takes 4"),
        (
            {"max_source_positions": 5, "max_positions": 5, "num_heads": 4, "hidden_size": 32},
            r"the target, with its start token, has 6 items, but the model takes 5; raise model\.max_positions",
        ),
    ],
)
def test_a_pair_that_is_too_long_is_named(tmp_path: Path, model: dict[str, int], part: str) -> None:
    """With its line, the numbers and the remedy."""
    plugin = "transformer_encoder_decoder" if "max_positions" in model else "lstm_encoder_decoder"

    with pytest.raises(ConfigError, match=part):
        train(config(tmp_path, model=model, plugin=plugin), console=QUIET)


def test_pairs_do_not_fit_a_model_without_sources(tmp_path: Path) -> None:
    """Both the data and the plugin are named."""
    with pytest.raises(ConfigError, match=r"pairs holds pairs of source and target, but a gru"):
        train(config(tmp_path, plugin="gru", model={"hidden_size": 8}), console=QUIET)


def test_a_tokenizer_without_start_and_end_is_refused(tmp_path: Path) -> None:
    """A target needs something to begin with, and something that ends it."""
    settings = config(tmp_path)
    dataset = prepare(settings)
    assert dataset.encoder is not None
    dataset.encoder.tokenizer.save(str(tmp_path / "tokenizer.json"))

    with pytest.raises(ConfigError, match="pairs need a token before and behind every target"):
        prepare(config(tmp_path, tokenizer={"kind": "file", "file": str(tmp_path / "tokenizer.json")}))
