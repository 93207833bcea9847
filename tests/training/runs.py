"""Small runs, and what tests ask of them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from rich.console import Console

from statewise.errors import ConfigError
from statewise_training.config import TrainConfig
from statewise_training.run.run import train

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


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(safetensors.torch.load_file(folder / "model.safetensors"))


def error(config: TrainConfig, **options: bool) -> str:
    with pytest.raises(ConfigError) as caught:
        train(config, console=Console(quiet=True), **options)
    return str(caught.value)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def same_weights(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
