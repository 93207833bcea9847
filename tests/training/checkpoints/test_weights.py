from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from statewise.errors import ConfigError
from statewise_training.checkpoints.weights import load_weights, read_weights, rename, save_weights


class LanguageModel(nn.Module):
    """The word language model of PyTorch's examples."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Embedding(5, 4)
        self.rnn = nn.LSTM(4, 4)
        self.decoder = nn.Linear(4, 5)


def test_names_of_another_module_are_mapped_by_prefix() -> None:
    """Whole parts are renamed, the longest prefix wins, an empty new name removes a wrapper's prefix."""
    tensors = dict.fromkeys(("a.b.weight", "a.bias", "ab.weight", "module.x"), torch.zeros(1))

    renamed = rename(tensors, {"a": "one", "a.b": "two", "module": ""}, "file")

    assert {"two.weight", "one.bias", "ab.weight", "x"} == renamed.keys()


def test_a_mapping_that_does_not_apply_is_refused() -> None:
    """A prefix that nothing has, and two tensors of one new name, are named."""
    tensors = {"a.w": torch.zeros(1), "b.w": torch.zeros(1)}

    with pytest.raises(ConfigError, match=r"no tensor in file begins with encoder \(it has a.w, b.w\)"):
        rename(tensors, {"encoder": "a"}, "file")
    with pytest.raises(ConfigError, match=r"two tensors would be named b\.w"):
        rename(tensors, {"a": "b"}, "file")


def test_half_precision_weights_load_into_single(tmp_path: Path) -> None:
    """Weights of another floating type are converted."""
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({name: tensor.half() for name, tensor in source.state_dict().items()}, path)

    load_weights(target, read_weights(path), "w")

    assert target.weight.dtype == torch.float32
    assert torch.equal(source.weight.half().float(), target.weight)


def test_tied_weights_of_any_module_survive(tmp_path: Path) -> None:
    """A PyTorch user's own tied module is written and read."""
    model, copy = LanguageModel(), LanguageModel()
    model.decoder.weight = nn.Parameter(torch.randn(5, 4))
    model.encoder.weight = model.decoder.weight
    copy.encoder.weight = copy.decoder.weight
    save_weights(model, tmp_path / "w.safetensors")

    load_weights(copy, read_weights(tmp_path / "w.safetensors"), "w")

    assert torch.equal(model.encoder.weight, copy.decoder.weight)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A path that leads nowhere, or to a folder, is a readable error."""
    for path in (tmp_path / "no.safetensors", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_weights(path)
