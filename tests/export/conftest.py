"""The commands `export` and `verify`, and a small model to run them on."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from statewise.cli import main
from statewise.plugins import load_plugin


@dataclass
class Outcome:
    """What a command left behind."""

    code: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The one message after `error:`."""
        assert "Traceback" not in self.stderr
        assert self.stderr.count("error:") == 1, self.stderr
        return self.stderr.partition("error:")[2].strip()


def in_a_process(*arguments: str | Path) -> Outcome:
    """Run `statewise` as a program of its own."""
    command = [sys.executable, "-m", "statewise", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return Outcome(done.returncode, done.stdout, done.stderr)


Statewise = Callable[..., Outcome]


@pytest.fixture
def statewise(capsys: pytest.CaptureFixture[str]) -> Statewise:
    """Run the same command line in this process, which saves importing torch again."""

    def run(*arguments: str | Path) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(int(stopped.value.code or 0), captured.out, captured.err)

    return run


def write_checkpoint(folder: Path) -> Path:
    import torch

    from statewise_training.checkpoints.checkpoint import save_checkpoint

    plugin = load_plugin("gru")
    config = plugin.config_class.model_validate({"vocabulary_size": 19, "hidden_size": 16})
    torch.manual_seed(3)
    save_checkpoint(folder, name="small", plugin_name="gru", config=config, module=plugin.build(config))
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """Export once through the real program; the repository, and what the program said."""
    folder = tmp_path_factory.mktemp("exported")
    outcome = in_a_process(
        "export", write_checkpoint(folder / "checkpoint"), "--to", folder / "models", "--report", "json"
    )
    return folder / "models", outcome


@pytest.fixture
def bundle(exported: tuple[Path, Outcome], tmp_path: Path) -> Path:
    """Copy the exported bundle, so that a test may damage it."""
    return Path(shutil.copytree(exported[0] / "small" / "1", tmp_path / "copy" / "small" / "1"))
