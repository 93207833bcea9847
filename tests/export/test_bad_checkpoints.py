"""Checkpoints that `statewise export` must refuse, each with a message that names the culprit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file

from tests.export.conftest import Statewise

WEIGHTS = "model.safetensors"


def read(checkpoint: Path) -> dict[str, torch.Tensor]:
    # From memory: load_file maps the file, which is about to be written.
    return load((checkpoint / WEIGHTS).read_bytes())


def edit_weights(checkpoint: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = read(checkpoint)
    change(tensors)
    save_file(tensors, checkpoint / WEIGHTS)


def remove(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)


def empty(checkpoint: Path) -> None:
    for file in checkpoint.iterdir():
        file.unlink()


def pickle(checkpoint: Path) -> None:
    torch.save(read(checkpoint), checkpoint / WEIGHTS)


def cut(checkpoint: Path) -> None:
    (checkpoint / WEIGHTS).write_bytes((checkpoint / WEIGHTS).read_bytes()[:-100])


def poison(checkpoint: Path) -> None:
    edit_weights(checkpoint, lambda tensors: tensors["output.bias"].fill_(float("nan")))


def lose_a_tensor(checkpoint: Path) -> None:
    edit_weights(checkpoint, lambda tensors: tensors.pop("rnn.weight_hh_l0"))


def add_a_tensor(checkpoint: Path) -> None:
    edit_weights(checkpoint, lambda tensors: tensors.update({"extra.weight": torch.zeros(2)}))


def reshape_a_tensor(checkpoint: Path) -> None:
    edit_weights(checkpoint, lambda tensors: tensors.update({"output.bias": torch.zeros(20)}))


def change_a_weight(checkpoint: Path) -> None:
    edit_weights(checkpoint, lambda tensors: tensors["output.bias"].add_(1))


def unknown_plugin(checkpoint: Path) -> None:
    record = checkpoint / "checkpoint.json"
    record.write_text(record.read_text().replace('"gru"', '"mamba"'))


def bad_config(checkpoint: Path) -> None:
    record = checkpoint / "checkpoint.json"
    record.write_text(record.read_text().replace('"hidden_size": 16', '"hidden_size": -16'))


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (remove, ["checkpoint: no such folder", "statewise train"]),
        (empty, ["has no checkpoint.json"]),
        (pickle, [WEIGHTS, "is a pickle"]),
        (cut, [WEIGHTS, "damaged"]),
        (poison, [WEIGHTS, "output.bias", "NaN"]),
        (lose_a_tensor, [WEIGHTS, "missing: rnn.weight_hh_l0"]),
        (add_a_tensor, [WEIGHTS, "not part of this model: extra.weight"]),
        (reshape_a_tensor, [WEIGHTS, "output.bias", "[20]", "[19]"]),
        (change_a_weight, [WEIGHTS, "changed since"]),
        (unknown_plugin, ["'mamba'", "gru, gru_encoder"]),
        (bad_config, ["checkpoint.json", "hidden_size"]),
    ],
)
def test_a_bad_checkpoint_is_refused(
    damage: Callable[[Path], None], parts: list[str], statewise: Statewise, checkpoint: Path, tmp_path: Path
) -> None:
    """Each is exit code 2 and one message that names the culprit; no repository is begun."""
    damage(checkpoint)

    outcome = statewise("export", checkpoint, "--to", tmp_path / "models")

    assert outcome.code == 2
    for part in parts:
        assert part in outcome.error
    assert not (tmp_path / "models").exists()
