"""Small real runs that several tests look at."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from statewise_training.run.run import train
from tests.training.runs import small_config


@pytest.fixture
def console() -> Console:
    """Give a console that keeps what is printed, for `printed`."""
    return Console(file=io.StringIO(), width=200)


@pytest.fixture
def printed(console: Console) -> Callable[[], str]:
    """Give what was printed so far."""
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train the small run once; its folder, which no test changes."""
    config = small_config(tmp_path_factory.mktemp("small"))
    train(config, console=Console(file=io.StringIO()))
    return config.folder
