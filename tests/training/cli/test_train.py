from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from statewise.errors import ConfigError
from statewise_training.cli.train import train
from tests.training.runs import small_config


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command()(train)
    return app


def config_file(folder: Path) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(small_config(folder).model_dump(mode="json")))
    return path


def test_a_run_is_reported_line_by_line_where_there_is_no_terminal(app: typer.Typer, tmp_path: Path) -> None:
    """Without a terminal each validation is a line, with losses and speed; the last ones give loss, bits and folder."""
    arguments = [str(config_file(tmp_path)), "--output", str(tmp_path / "out"), "--set", "trainer.max_steps=8"]

    result = CliRunner().invoke(app, arguments)
    lines = result.stdout.splitlines()

    assert result.exit_code == 0
    assert [line.split("  ")[0] for line in lines if line.startswith("step")] == ["step 4/8", "step 8/8"]
    assert "bits per character, held out (baselines: unigram" in result.stdout
    assert lines[-1] == f"checkpoint: {tmp_path / 'out'}"
    assert "\x1b" not in result.stdout


def test_a_complete_run_exits_with_0(app: typer.Typer, small_run: Path, tmp_path: Path) -> None:
    """Training again in a complete run's folder is no error."""
    result = CliRunner().invoke(app, [str(small_run / "config.yaml"), "--output", str(small_run)])

    assert result.exit_code == 0
    assert "complete already" in result.stdout


def test_errors_are_left_to_the_program(app: typer.Typer, tmp_path: Path) -> None:
    """A mistake in settings or data comes out as the error that `statewise` prints, and leaves no folder."""
    for override, part in (("trainer.batch_size=0", "trainer.batch_size"), ("data.files=no.txt", "'no.txt'")):
        result = CliRunner().invoke(app, [str(config_file(tmp_path)), "--set", override])

        assert isinstance(result.exception, ConfigError)
        assert part in str(result.exception)
        assert not (tmp_path / "run").exists()


def test_resume_and_force_exclude_each_other(app: typer.Typer, tmp_path: Path) -> None:
    """Asking for both is refused."""
    assert CliRunner().invoke(app, [str(config_file(tmp_path)), "--resume", "--force"]).exit_code == 2


def test_help_needs_no_torch() -> None:
    """The command is imported without torch or Lightning, so that help and mistakes come at once."""
    script = (
        "import sys, statewise_training.cli.train; "
        "print([m for m in ('torch', 'lightning', 'pydantic') if m in sys.modules])"
    )

    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout

    assert output.strip() == "[]"
