from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from rich.console import Console

from statewise.plugins import load_plugin
from statewise_training.checkpoints.checkpoint import load_checkpoint
from statewise_training.data.dataset import prepare
from statewise_training.run.evaluation import held_out_loss
from statewise_training.run.run import train
from tests.training.runs import error, rows, same_weights, small_config, weights

Printed = Callable[[], str]


def test_a_run_leaves_everything_that_is_promised(small_run: Path) -> None:
    """The folder has the weights, their description, tokenizer, configuration, log, picture and summary."""
    summary = json.loads((small_run / "summary.json").read_text())
    checkpoint = load_checkpoint(small_run)

    assert "small" == summary["name"] == checkpoint.name
    assert (summary["steps"], summary["best_step"]) == (12, 12)
    assert sum(tensor.numel() for tensor in checkpoint.module.parameters()) == summary["parameters"]
    assert checkpoint.tokenizer_file == small_run / "tokenizer.json"
    assert (checkpoint.special_tokens.start, checkpoint.special_tokens.end) == (0, 1)
    assert yaml.safe_load((small_run / "config.yaml").read_text())["trainer"]["max_steps"] == 12
    np.testing.assert_array_equal(
        checkpoint.held_out(), np.concatenate(prepare(small_config(small_run.parent)).held_out_documents)
    )
    assert (small_run / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_log_has_a_row_per_logged_step(small_run: Path) -> None:
    """Training losses come every two steps, validation losses at the end of each round, by number of updates."""
    log = rows(small_run)

    assert [row["step"] for row in log if row["train_loss"]] == ["2", "4", "6", "8", "10", "12"]
    assert [row["step"] for row in log if row["validation_loss"]] == ["4", "8", "12"]


def test_the_summary_speaks_of_the_weights_that_are_kept(small_run: Path) -> None:
    """Loss and bits per character follow from model.safetensors and the held-out text; training has beaten chance."""
    summary = json.loads((small_run / "summary.json").read_text())
    dataset = prepare(small_config(small_run.parent))
    loss = held_out_loss(load_checkpoint(small_run), dataset.held_out, batch_size=3)
    characters = 200  # a tenth of 40 lines of 50 characters

    assert loss == pytest.approx(summary["validation_loss"], rel=1e-5)
    assert summary["validation_loss"] < math.log(dataset.item_size)
    assert (characters, characters) == (summary["held_out_characters"], summary["held_out_items"])
    assert summary["bits_per_character"] == pytest.approx(loss / math.log(2), rel=1e-5)
    assert summary["baselines"]["bigram"] < summary["baselines"]["unigram"]


def test_the_summary_agrees_with_the_log(small_run: Path) -> None:
    """The validation loss of the kept weights is that of the best row in the log."""
    best = min(float(row["validation_loss"]) for row in rows(small_run) if row["validation_loss"])

    assert best == pytest.approx(json.loads((small_run / "summary.json").read_text())["validation_loss"], rel=1e-4)


def test_a_seed_gives_the_same_weights_and_another_one_others(small_run: Path, tmp_path: Path) -> None:
    """The same configuration ends, bit for bit, in the same weights; another seed does not."""
    train(small_config(tmp_path / "a"), console=Console(quiet=True))
    train(small_config(tmp_path / "b", trainer__seed=1), console=Console(quiet=True))

    assert same_weights(small_run, tmp_path / "a" / "run")
    assert not same_weights(small_run, tmp_path / "b" / "run")


def test_a_complete_run_is_left_alone(tmp_path: Path, console: Console, printed: Printed) -> None:
    """Training again says that it is complete, gives the summary, and touches no file; --force trains it again."""
    config = small_config(tmp_path)
    first = train(config, console=console)
    times = {path: path.stat().st_mtime_ns for path in config.folder.rglob("*")}

    again = train(config, console=console)
    unchanged = times == {path: path.stat().st_mtime_ns for path in config.folder.rglob("*")}
    (config.folder / "notes.txt").write_text("the user's own")
    forced = train(config, force=True, console=console)

    assert "complete already" in printed()
    assert first == again
    assert unchanged
    assert forced is not None
    assert (config.folder / "notes.txt").exists()


def test_the_weights_of_a_pytorch_user_are_a_start(small_run: Path, tmp_path: Path) -> None:
    """A state dict under other names is where training starts from; with hardly any learning it stays there."""
    names = {"embedding": "encoder", "rnn": "lstm", "output": "decoder"}
    given = {
        f"{names[name.split('.')[0]]}.{name.partition('.')[2]}": tensor for name, tensor in weights(small_run).items()
    }
    safetensors.torch.save_file(given, tmp_path / "theirs.safetensors")
    start = {"file": str(tmp_path / "theirs.safetensors"), "rename": {new: old for old, new in names.items()}}
    config = small_config(
        tmp_path, initialize_from=start, optimizer__learning_rate=1e-9, trainer__max_steps=1, trainer__seed=5
    )
    train(config, console=Console(quiet=True))

    assert all(
        torch.allclose(tensor, weights(config.folder)[name], atol=1e-6) for name, tensor in weights(small_run).items()
    )


@pytest.mark.parametrize(
    ("tensors", "part"),
    [
        ({"output.weight": torch.zeros(1, 1)}, "output.weight has shape [1, 1]"),
        ({"decoder.weight": torch.zeros(1)}, "not part of this model: decoder.weight"),
    ],
)
def test_weights_that_do_not_fit_are_no_start(
    small_run: Path, tmp_path: Path, tensors: dict[str, torch.Tensor], part: str
) -> None:
    """A wrong shape or a name too many is told with the file."""
    file = tmp_path / "w.safetensors"
    safetensors.torch.save_file({**weights(small_run), **tensors}, file)

    text = error(small_config(tmp_path, initialize_from={"file": str(file)}))

    assert f"initialize_from.file: {file}" in text
    assert part in text


def test_a_pickle_is_no_start(tmp_path: Path) -> None:
    """torch.save's file is refused before anything is trained."""
    torch.save({}, tmp_path / "w.pt")

    assert "is a pickle" in error(small_config(tmp_path, initialize_from={"file": str(tmp_path / "w.pt")}))


def test_a_series_is_learned_in_standardised_units(tmp_path: Path) -> None:
    """A sine of large values is predicted better than by its mean; what was subtracted and divided is recorded."""
    values = np.sin(np.arange(600) * 0.3)[:, None] * [50, 5] + [1000, 0]
    np.save(tmp_path / "sine.npy", values)
    config = small_config(
        tmp_path,
        data={"kind": "series", "files": f"{tmp_path}/sine.npy", "standardize": True},
        trainer__max_steps=60,
        trainer__validation_every=30,
    )
    summary = train(config, console=Console(quiet=True))
    checkpoint = load_checkpoint(config.folder)

    assert summary is not None
    assert summary.validation_loss < summary.baselines["mean"] / 4
    assert checkpoint.tokenizer_file is None
    assert checkpoint.standardization is not None
    assert checkpoint.standardization.mean == pytest.approx(values[:540].mean(axis=0), rel=1e-4, abs=1e-3)
    assert checkpoint.standardization.deviation == pytest.approx(values[:540].std(axis=0), rel=1e-3)
    # What is kept for the export is in the series' own units.
    np.testing.assert_allclose(checkpoint.held_out(), values[540:], rtol=1e-4, atol=1e-3)


def test_early_stopping_ends_a_run_that_no_longer_gains(tmp_path: Path) -> None:
    """With a learning rate of next to nothing, a patience of two validations ends after the fourth at the latest."""
    config = small_config(
        tmp_path,
        optimizer__learning_rate=1e-12,
        trainer__max_steps=100,
        trainer__validation_every=2,
        trainer__early_stopping_patience=2,
    )
    summary = train(config, console=Console(quiet=True))

    assert summary is not None
    assert summary.steps <= 8


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"plugin": "hmm"}, "plugin: no plugin named 'hmm'"),
        ({"plugin": "lstmm"}, "; did you mean lstm?"),
        ({"model__hiden_size": 3}, "model.hiden_size: unknown key (its value is 3); did you mean model.hidden_size?"),
        ({"model__hidden_size": 0}, "model.hidden_size: should be greater than or equal to 1, got 0"),
        ({"model__vocabulary_size": 9}, "model.vocabulary_size: is 9, but the data gives"),
        ({"trainer__accelerator": "warp"}, "accelerator warp"),
        ({"trainer__strategy": "warp"}, "strategy warp"),
    ],
)
def test_what_only_data_or_machine_can_tell_is_told(tmp_path: Path, changes: dict[str, Any], part: str) -> None:
    """Settings that fit neither plugin, data nor machine are named with their values."""
    assert part in error(small_config(tmp_path, **changes))


def test_a_transformer_trains_within_its_positions(tmp_path: Path) -> None:
    """A run leaves a checkpoint that loads; chunks longer than the model's positions are refused by name."""
    model = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "max_positions": 20}
    config = small_config(tmp_path, plugin="transformer", model=model)
    summary = train(config)

    assert summary is not None
    assert load_checkpoint(config.folder).plugin.name == "transformer"
    message = error(small_config(tmp_path / "long", plugin="transformer", model=model, trainer__sequence_length=21))
    assert "trainer.sequence_length: 21" in message
    assert "20 positions" in message


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """The key and the path are named."""
    config = small_config(tmp_path)
    config.folder.touch()

    assert f"output: {config.folder}" in error(config)


def test_a_module_without_a_method_that_its_plugin_promises_is_not_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plugin and the method are named before the first step, not when the trained model is exported."""
    monkeypatch.setattr(type(load_plugin("gru")), "mixes", True)

    message = error(small_config(tmp_path))

    assert message.startswith("plugin 'gru': its module RecurrentModule has no method `forward_mixed`")
