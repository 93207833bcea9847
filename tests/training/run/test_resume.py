from __future__ import annotations

import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml
from rich.console import Console

from statewise_training.config import TrainConfig
from statewise_training.run.run import train
from tests.training.runs import error, rows, same_weights, small_config

Printed = Callable[[], str]


def start(config: TrainConfig) -> subprocess.Popen[bytes]:
    file = config.folder.with_name("run.yaml")
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    script = "import typer; from statewise_training.cli.train import train; typer.run(train)"
    return subprocess.Popen([sys.executable, "-c", script, str(file)], stdout=subprocess.PIPE)


def wait_for(condition: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + 60
    while not condition() and time.monotonic() < limit:
        assert process.poll() is None, "the run ended before it could be stopped"
        time.sleep(0.01)


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path, console: Console, printed: Printed) -> None:
    """A run that is killed in its middle, and given again, ends bit for bit as one that was never stopped."""
    length = {"trainer__max_steps": 200, "trainer__validation_every": 10}
    whole, broken = small_config(tmp_path / "a", **length), small_config(tmp_path / "b", **length)
    process = start(broken)
    wait_for(lambda: list(broken.folder.glob("checkpoints/latest-step=*.ckpt")), process)
    process.send_signal(signal.SIGKILL)
    process.wait()

    train(whole, console=Console(quiet=True))
    summary = train(broken, resume=True, console=console)

    assert "going on from" in printed()
    assert summary is not None
    assert same_weights(whole.folder, broken.folder)
    measured = [
        [{name: row[name] for name in ("step", "train_loss", "validation_loss")} for row in rows(run.folder)]
        for run in (whole, broken)
    ]
    assert measured[0] == measured[1]


def test_a_terminated_run_says_how_to_go_on(tmp_path: Path) -> None:
    """SIGTERM ends a run at once, without a traceback; only one process trains in a folder."""
    config = small_config(tmp_path, trainer__max_steps=100_000, trainer__validation_every=10)
    process = start(config)
    wait_for(lambda: list(config.folder.glob("checkpoints/latest-step=*.ckpt")), process)

    assert "another process trains in" in error(config)

    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 130
    assert "stopped; give the same command again" in output
    assert "Traceback" not in output


def shorter_run(tmp_path: Path) -> TrainConfig:
    """Train 8 of 12 steps; the configuration of all 12."""
    train(small_config(tmp_path, trainer__max_steps=8), console=Console(quiet=True))
    return small_config(tmp_path)


def test_a_complete_run_is_trained_on_with_resume(tmp_path: Path) -> None:
    """More steps and --resume go on from the last checkpoint; without --resume the difference is told."""
    config = shorter_run(tmp_path)

    text = error(config)
    summary = train(config, resume=True, console=Console(quiet=True))

    assert "trainer.max_steps: 8 there, 12 now" in text
    assert summary is not None
    assert summary.steps == 12
    assert [row["step"] for row in rows(config.folder) if row["validation_loss"]] == ["4", "8", "12"]


def test_a_torn_checkpoint_is_passed_over(tmp_path: Path, console: Console, printed: Printed) -> None:
    """With the newest checkpoint damaged the run goes on from the one before; with all damaged it says so."""
    config = shorter_run(tmp_path)
    (config.folder / "checkpoints" / "best-step=8.ckpt").write_bytes(b"")
    newest = config.folder / "checkpoints" / "latest-step=8.ckpt"
    newest.write_bytes(newest.read_bytes()[:5000])

    train(config, resume=True, console=console)
    for path in config.folder.glob("checkpoints/*.ckpt"):
        path.write_bytes(b"")
    text = error(small_config(tmp_path, trainer__max_steps=16), resume=True)

    assert "latest-step=8.ckpt is damaged" in printed()
    assert "latest-step=4.ckpt" in printed()
    assert "no checkpoint in" in text
    assert "--force" in text


def test_other_settings_or_data_are_not_mixed_into_a_run(tmp_path: Path) -> None:
    """A run with other settings, or over data that has changed since, is not gone on with."""
    config = shorter_run(tmp_path)
    text = error(small_config(tmp_path, model__hidden_size=13), resume=True)
    (tmp_path / "text.txt").write_text("another text " * 50)

    assert "model.hidden_size: 12 there, 13 now" in text
    assert "the data has changed" in error(config, resume=True)


def test_resume_needs_a_run(tmp_path: Path) -> None:
    """--resume in an empty folder is refused."""
    assert "--resume" in error(small_config(tmp_path), resume=True)


def test_a_full_disk_is_told_and_the_run_goes_on_later(small_run: Path, tmp_path: Path) -> None:
    """Where a checkpoint cannot be written the run ends readably, and the same call later finishes it."""
    config = small_config(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Files larger than this fail with EFBIG, as on a full disk with ENOSPC.
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        text = error(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    train(config, console=Console(quiet=True))

    assert "cannot write to" in text
    assert same_weights(small_run, config.folder)
