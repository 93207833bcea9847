"""Small real runs that several tests look at."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from training.config import TrainConfig
from training.run import train

WORDS = "the cat sat on the mat and the dog ran to the cat\n"


def small_config(folder: Path, **changes: Any) -> TrainConfig:
    """Build a run of 12 steps in three rounds, on a text file that is made here; `section__key=value` changes it."""
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "text.txt"
    if not text.exists():
        text.write_text(WORDS * 40)
    raw: dict[str, Any] = {
        "name": "small",
        "plugin": "gru",
        "model": {"hidden_size": 12, "dropout": 0.1},
        "data": {"kind": "text", "files": [str(text)]},
        "optimizer": {"learning_rate": 0.02},
        "trainer": {
            "max_steps": 12,
            "validation_every": 4,
            "batch_size": 4,
            "sequence_length": 20,
            "log_every": 2,
            "accelerator": "cpu",
        },
        "output": str(folder / "run"),
    }
    for name, value in changes.items():
        *sections, key = name.split("__")
        target = raw
        for section in sections:
            target = target.setdefault(section, {})
        target[key] = value
    return TrainConfig.model_validate(raw)


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
