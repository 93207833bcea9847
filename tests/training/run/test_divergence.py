"""Runs that end worse than a prediction that ignores the input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import yaml
from rich.console import Console
from typer.testing import CliRunner

from statewise import cli
from statewise.errors import DivergedError
from statewise_training.checkpoints.checkpoint import load_checkpoint
from statewise_training.cli.train import train as command
from statewise_training.config import TrainConfig
from statewise_training.run.divergence import check_learnt
from statewise_training.run.evaluation import Summary
from statewise_training.run.run import train
from tests.training.runs import small_config

WORSE = {"optimizer__learning_rate": 30.0, "trainer__max_steps": 4}
"""Steps so large that every weight lies beyond use after the first."""


def summary_of(config: TrainConfig) -> Summary:
    summary = train(config, console=Console(quiet=True))
    assert summary is not None
    return summary


def run_command(config: TrainConfig, folder: Path, *options: str) -> Any:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(path), *options])


def test_a_run_worse_than_token_frequencies_fails(tmp_path: Path) -> None:
    """The message has both losses, the kept folder, the settings to change and to accept it; the second time too."""
    config = small_config(tmp_path, **WORSE)

    results = [run_command(config, tmp_path), run_command(config, tmp_path)]

    for result in results:
        assert isinstance(result.exception, DivergedError)
        message = str(result.exception)
        for part in ("nats per item", "token frequencies alone", "optimizer.learning_rate", str(config.folder)):
            assert part in message
        assert "trainer.allow_diverged=true" in message
    assert "complete already" in results[1].stdout
    assert load_checkpoint(config.folder).name == "small"


def test_the_failure_can_be_allowed(tmp_path: Path) -> None:
    """With trainer.allow_diverged the same run, and the one that is there already, succeed and say so."""
    config = small_config(tmp_path, **WORSE)
    assert run_command(config, tmp_path).exit_code == 1

    allowed = run_command(config, tmp_path, "--set", "trainer.allow_diverged=true")

    assert allowed.exit_code == 0
    assert "worse than" in allowed.stdout


def test_a_run_that_learns_passes(tmp_path: Path, small_run: Path) -> None:
    """A short run that is better than the frequencies is accepted; the summary has the loss of those frequencies."""
    summary = Summary.model_validate_json((small_run / "summary.json").read_bytes())

    assert summary.baseline_loss is not None
    bits = summary.baseline_loss / np.log(2) * summary.held_out_items / (summary.held_out_characters or 0)
    assert bits == pytest.approx(summary.baselines["unigram"])
    assert summary.validation_loss < summary.baseline_loss
    check_learnt(summary, small_config(tmp_path), Console(quiet=True))


def test_a_loss_that_is_no_number_is_divergence_too(tmp_path: Path) -> None:
    """Such a run cannot go on, whatever is allowed; it is the same error, with the step."""
    config = small_config(
        tmp_path,
        plugin="rnn",
        model={"hidden_size": 12, "nonlinearity": "relu"},
        optimizer__learning_rate=100,
        trainer__gradient_clip=None,
        trainer__allow_diverged=True,
    )

    with pytest.raises(DivergedError, match=r"training has diverged: .* at step \d+; lower optimizer\.learning_rate"):
        train(config, console=Console(quiet=True))


def labelled(folder: Path, **changes: Any) -> TrainConfig:
    rng = np.random.default_rng(0)
    items = rng.standard_normal((40, 5, 2)).astype(np.float32)
    labels, values = (items.mean((1, 2)) > 0).astype(int), items.mean((1, 2))
    np.savez(folder / "data.npz", items=items, labels=labels, values=values)
    return TrainConfig.model_validate(
        {
            "name": "labelled",
            "plugin": "gru_encoder",
            "model": {"hidden_size": 8},
            "data": {"kind": "labelled", "files": str(folder / "data.npz"), **changes},
            "optimizer": {"learning_rate": 0.01},
            "trainer": {"max_steps": 20, "batch_size": 8, "accelerator": "cpu"},
            "output": str(folder / "run"),
        }
    )


def test_labels_are_held_against_their_frequencies(tmp_path: Path) -> None:
    """The loss of the training part's frequencies; a worse loss fails only where the labels are wrong too."""
    config = labelled(tmp_path)
    summary = summary_of(config)
    worse = summary.model_copy(update={"validation_loss": 2.0, "accuracy": 0.1})

    assert summary.baseline_loss == pytest.approx(np.log(2), abs=0.05)
    check_learnt(worse.model_copy(update={"accuracy": 0.9}), config, Console(quiet=True))
    with pytest.raises(DivergedError, match=r"2\.0000 nats per label, worse than .* by label frequencies alone"):
        check_learnt(worse, config, Console(quiet=True))


def test_values_are_held_against_their_mean(tmp_path: Path) -> None:
    """Of values and of series it is the squared error of the training part's mean."""
    summary = summary_of(labelled(tmp_path, target="value"))

    assert summary.baseline_loss == summary.baselines["mean"]


def test_series_are_held_against_what_ignores_time(tmp_path: Path) -> None:
    """The mean for values, one Gaussian for a mixture: not the last value, which is hard to beat in a random walk."""
    walk = np.random.default_rng(0).standard_normal((400, 2)).cumsum(0)
    np.save(tmp_path / "walk.npy", walk.astype(np.float32))
    data = {"kind": "series", "files": str(tmp_path / "walk.npy"), "standardize": True}
    for head, name in (("value", "mean"), ("mixture", "gaussian")):
        config = small_config(tmp_path / head, data=data, model={"hidden_size": 8, "head": head})
        summary = summary_of(config)

        assert summary.baseline_loss == summary.baselines[name]


def test_a_model_in_closed_form_cannot_diverge(tmp_path: Path) -> None:
    """Counts are the best that there is of their kind, even where single tokens would do better."""
    config = small_config(tmp_path, plugin="markov", model={}, optimizer={}, trainer={"accelerator": "cpu"})
    summary = summary_of(config).model_copy(update={"validation_loss": 99.0})

    check_learnt(summary, config, Console(quiet=True))


def test_the_program_exits_with_1(tmp_path: Path, capfd: Any) -> None:
    """A check was missed, as in export: not 2, which means that the input cannot be used."""
    config = small_config(tmp_path, **WORSE)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))

    with pytest.raises(SystemExit) as exit_info:
        cli.main(["train", str(tmp_path / "run.yaml")])

    assert exit_info.value.code == 1
    assert json.loads((config.folder / "summary.json").read_text())["baseline_loss"] > 0
