"""The first-order model, counted and trained."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from statewise.plugins import load_plugin
from statewise_training.checkpoints.checkpoint import load_checkpoint
from statewise_training.run.module import unroll
from statewise_training.run.run import train
from tests.training.runs import WORDS, error, rows, same_weights, small_config

DOCUMENTS = [np.array([0, 1, 1, 2, 1], np.int32), np.array([0, 2], np.int32), np.array([3], np.int32)]


def build(**options: Any) -> tuple[torch.nn.Module, Any, Any]:
    plugin = load_plugin("markov")
    config = plugin.config_class.model_validate({"vocabulary_size": 5, **options})
    return plugin.build(config).eval(), plugin, config


def small_chain(folder: Path, **model: Any) -> Any:
    return small_config(folder, plugin="markov", model=model)


@pytest.mark.parametrize("smoothing", [1.0, 0.25])
def test_counting_gives_the_closed_form(smoothing: float) -> None:
    """The table is log((count(a, b) + s) / (count(a) + s V)), uniform after a token that nothing has followed."""
    module, plugin, config = build(smoothing=smoothing)
    following = [(a, b) for document in DOCUMENTS for a, b in pairwise(document.tolist())]

    assert plugin.fit(module, config, DOCUMENTS)
    output = unroll(module, plugin.spec(config), torch.arange(5)[None])[0]

    for a in range(5):
        for b in range(5):
            share = (following.count((a, b)) + smoothing) / (sum(x == a for x, _ in following) + smoothing * 5)
            assert output[a, b].item() == pytest.approx(math.log(share), abs=1e-6)


def test_the_state_is_the_last_item_and_none_is_told_from_token_0() -> None:
    """Rows in ragged chunks hold the id + 1 of their last item; without new items the state stays."""
    module, _, _ = build()
    state = (torch.zeros(3, dtype=torch.int64),)
    for lengths, expected in (([2, 0, 3], [1, 0, 5]), ([0, 0, 1], [1, 0, 4]), ([3, 1, 0], [5, 4, 4])):
        _, state = module(torch.tensor([[3, 0, 4]]).repeat(3, 1), torch.tensor(lengths), state)

        assert state[0].tolist() == expected


def test_a_counted_run_leaves_all_that_a_trained_one_does(tmp_path: Path) -> None:
    """Weights, log, picture and summary without a step; the figure is the bigram baseline's, whose counts it has."""
    summary = train(small_chain(tmp_path), console=Console(quiet=True))
    folder = tmp_path / "run"

    assert summary is not None
    assert (summary.steps, summary.best_step) == (0, 0)
    assert summary.bits_per_character == pytest.approx(summary.baselines["bigram"])
    assert load_checkpoint(folder).plugin.name == "markov"
    assert json.loads((folder / "summary.json").read_text()) == summary.model_dump()
    assert [(row["step"], float(row["validation_loss"])) for row in rows(folder)] == [("0", summary.validation_loss)]
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_counted_run_that_was_broken_off_is_made_again(tmp_path: Path) -> None:
    """Without its summary a run is not complete; the same command ends in the same weights, and then leaves them."""
    config = small_chain(tmp_path)
    train(config, console=Console(quiet=True))
    other = train(small_chain(tmp_path / "other"), console=Console(quiet=True))
    (config.folder / "summary.json").unlink()
    again = train(config, console=Console(quiet=True))

    assert again is not None
    assert other is not None
    assert again.validation_loss == other.validation_loss
    assert same_weights(config.folder, tmp_path / "other" / "run")
    assert train(config, console=Console(quiet=True)) == again


def test_gradient_descent_approaches_the_counts(tmp_path: Path) -> None:
    """After tokens that occur, the trained shares are within 0.02 of those counted almost without smoothing."""
    trained = small_config(
        tmp_path,
        plugin="markov",
        model={"fit": "gradient"},
        data={"kind": "text", "files": [str(tmp_path / "text.txt")], "held_out": 0.02},
        optimizer={"learning_rate": 0.5, "weight_decay": 0.0},
        trainer={
            "max_steps": 100,
            "validation_every": 50,
            "batch_size": 20,
            "sequence_length": 100,
            "accelerator": "cpu",
        },
    )
    counted = trained.model_copy(update={"model": {"smoothing": 1e-4}, "output": tmp_path / "counted"})
    for config in (trained, counted):
        train(config, console=Console(quiet=True))
    one, other = (load_checkpoint(c.folder).module.table.softmax(-1) for c in (trained, counted))
    seen = (other - 1 / len(other)).abs().amax(-1) > 0.05

    assert int(seen.sum()) == len(set(WORDS)) + 1  # and the start of the text
    assert (one - other)[seen].abs().max() < 0.02


def test_what_a_table_cannot_be_is_refused(tmp_path: Path) -> None:
    """Too large a vocabulary, real vectors, counts that may be 0 and weights to start from: what, and what instead."""
    series = {"kind": "series", "files": [str(tmp_path / "series.npy")]}
    np.save(tmp_path / "series.npy", np.zeros((50, 2), np.float32))
    weights = {"file": str(tmp_path / "run" / "model.safetensors")}
    train(small_chain(tmp_path), console=Console(quiet=True))
    started = small_config(tmp_path, plugin="markov", model={}, initialize_from=weights, output=str(tmp_path / "new"))

    with pytest.raises(ValueError, match=r"50,257 tokens need .* 2,525,766,049 numbers \(9.4 GiB\).* autoregressive"):
        build(vocabulary_size=50_257)
    assert "model.smoothing: should be greater than 0" in error(small_chain(tmp_path / "s", smoothing=0))
    assert "reads tokens" in error(small_config(tmp_path / "v", plugin="markov", model={}, data=series))
    assert "initialize_from: " in error(started)
    assert not started.folder.exists()


def test_fit_leaves_what_is_trained_by_gradient_alone() -> None:
    """With fit: gradient there is no closed form, and no weight changes."""
    module, plugin, config = build(fit="gradient")
    before = module.table.clone()

    assert not plugin.fit(module, config, DOCUMENTS)
    assert torch.equal(module.table, before)
