from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from statewise.bundles.manifest import SpecialTokens
from statewise.errors import ConfigError
from statewise.plugins import load_plugin
from statewise_training.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from statewise_training.data.standardization import Standardization
from statewise_training.data.tokenizers import byte_level


def write(folder: Path, **changes: Any) -> torch.nn.Module:
    """Write a checkpoint as a PyTorch user would, and give its module."""
    plugin = load_plugin("lstm")
    config = plugin.config_class(**{"vocabulary_size": 11, "hidden_size": 6, **changes})
    module = plugin.build(config)
    save_checkpoint(folder, name="mine", plugin_name="lstm", config=config, module=module)
    return module


def rewrite(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Replace (or with None remove) tensors in the weights file."""
    path = folder / "model.safetensors"
    content = {**safetensors.torch.load_file(path), **tensors}
    safetensors.torch.save_file({name: tensor for name, tensor in content.items() if tensor is not None}, path)


def error(folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_checkpoint(folder)
    return str(caught.value)


def test_a_checkpoint_gives_back_what_was_saved(tmp_path: Path) -> None:
    """Weights, settings, special tokens, tokenizer and standardisation come back; the module is set to evaluation."""
    plugin = load_plugin("gru")
    config = plugin.config_class(vocabulary_size=258, hidden_size=6, num_layers=2, dropout=0.5)
    module = plugin.build(config)
    tokenizer = tmp_path / "elsewhere.json"
    byte_level().save(str(tokenizer))
    save_checkpoint(
        tmp_path / "new" / "folder",
        name="mine",
        plugin_name="gru",
        config=config,
        module=module,
        special_tokens=SpecialTokens(start=0, end=1),
        tokenizer_file=tokenizer,
        standardization=Standardization(mean=(1.0,), deviation=(2.0,)),
    )

    checkpoint = load_checkpoint(tmp_path / "new" / "folder")

    assert ("mine", "gru", config) == (checkpoint.name, checkpoint.plugin.name, checkpoint.config)
    assert (checkpoint.special_tokens.start, checkpoint.special_tokens.end) == (0, 1)
    assert Standardization(mean=(1.0,), deviation=(2.0,)) == checkpoint.standardization
    assert checkpoint.tokenizer_file is not None
    assert tokenizer.read_bytes() == checkpoint.tokenizer_file.read_bytes()
    assert not checkpoint.module.training
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, checkpoint.module.state_dict()[name])


def test_tied_weights_are_written_once_and_stay_tied(tmp_path: Path) -> None:
    """A matrix with two names is in the file once, and one tensor again after loading."""
    module = write(tmp_path, tied_embeddings=True)
    names = safetensors.torch.load_file(tmp_path / "model.safetensors").keys()

    loaded = load_checkpoint(tmp_path).module

    assert len(names & {"embedding.weight", "output.weight"}) == 1
    assert loaded.get_parameter("output.weight") is loaded.get_parameter("embedding.weight")
    assert torch.equal(module.get_parameter("output.weight"), loaded.get_parameter("output.weight"))


def test_tied_weights_that_differ_are_refused(tmp_path: Path) -> None:
    """A file in which the two names of one tensor disagree cannot mean both."""
    write(tmp_path, tied_embeddings=True)
    rewrite(tmp_path, **{"embedding.weight": torch.zeros(11, 6), "output.weight": torch.ones(11, 6)})

    assert "output.weight and embedding.weight are one tensor" in error(tmp_path)


def test_a_checkpoint_can_be_overwritten(tmp_path: Path) -> None:
    """Saving again into the same folder replaces the model; nothing else is left behind."""
    write(tmp_path)
    module = write(tmp_path, hidden_size=7)

    assert {"model.safetensors", "checkpoint.json"} == {path.name for path in tmp_path.iterdir()}
    assert torch.equal(module.get_parameter("output.weight"), load_checkpoint(tmp_path).module.output.weight)


def test_a_folder_written_by_halves_is_refused(tmp_path: Path) -> None:
    """New weights beside an old checkpoint.json, as a crash between the two leaves them, are noticed."""
    write(tmp_path)
    description = (tmp_path / "checkpoint.json").read_bytes()
    write(tmp_path)
    (tmp_path / "checkpoint.json").write_bytes(description)

    assert "model.safetensors: changed since checkpoint.json" in error(tmp_path)


def test_each_fault_of_the_weights_is_named(tmp_path: Path) -> None:
    """Missing, extra, wrongly shaped, whole-number and non-finite tensors are named, all in one message."""
    write(tmp_path)
    nan = torch.zeros(24)
    nan[3] = torch.nan
    rewrite(
        tmp_path,
        **{
            "rnn.bias_ih_l0": nan,
            "rnn.bias_hh_l0": torch.zeros(24, dtype=torch.int32),
            "embedding.weight": None,
            "output.weight": torch.zeros(11, 5),
            "decoder.weight": torch.zeros(1),
        },
    )
    text = error(tmp_path)

    assert "missing: embedding.weight" in text
    assert "not part of this model: decoder.weight" in text
    assert "output.weight has shape [11, 5], expected [11, 6]" in text
    assert "rnn.bias_ih_l0 holds 1 values that are NaN" in text
    assert "rnn.bias_hh_l0 holds torch.int32" in text


def test_a_pickle_is_refused_unread(tmp_path: Path) -> None:
    """Files of torch.save, new and old, are refused with the way to convert them; their code does not run."""
    module = write(tmp_path)
    for zipped in (True, False):
        torch.save(module.state_dict(), tmp_path / "model.safetensors", _use_new_zipfile_serialization=zipped)
        text = error(tmp_path)

        assert "is a pickle" in text
        assert "save_file" in text


@pytest.mark.parametrize("content", [b"", b"\0" * 5, b"\xff" * 100, b"\x10\0\0\0\0\0\0\0{"])
def test_damaged_weights_are_refused(tmp_path: Path, content: bytes) -> None:
    """An empty, torn or random weights file is told to be damaged."""
    write(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)

    assert "model.safetensors: damaged" in error(tmp_path)


def test_every_cut_of_the_weights_is_refused(tmp_path: Path) -> None:
    """However much of the weights file is lost, it is not loaded."""
    write(tmp_path)
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    for size in range(0, len(content), 97):
        path.write_bytes(content[:size])

        assert "damaged" in error(tmp_path)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    """A missing folder, and one without checkpoint.json, are told apart, with what to do."""
    assert "no such folder" in error(tmp_path / "nowhere")
    assert "training there has not finished" in error(tmp_path)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"plugin": "hmm"}, "no plugin named 'hmm'"),
        ({"config": {"hidden_size": 3}}, "vocabulary_size"),
        ({"config": {"vocabulary_size": 11, "depth": 3}}, "depth"),
        ({"schema_version": 3}, "schema_version"),
        ({"schema_version": 1}, "train or save it again"),
        ({"extra": 1}, "extra"),
        ({"files": {"../weights": "0" * 64}}, "files"),
        ({"files": {}}, "files"),
    ],
)
def test_a_bad_description_is_refused(tmp_path: Path, change: dict[str, Any], part: str) -> None:
    """An unknown plugin, settings that it refuses, another schema and unknown members are named."""
    write(tmp_path)
    path = tmp_path / "checkpoint.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    text = error(tmp_path)

    assert str(path) in text
    assert part in text


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"3"])
def test_a_description_that_is_no_json_is_refused(tmp_path: Path, content: bytes) -> None:
    """A torn checkpoint.json is named."""
    write(tmp_path)
    (tmp_path / "checkpoint.json").write_bytes(content)

    assert "checkpoint.json" in error(tmp_path)


def test_a_lost_tokenizer_is_named(tmp_path: Path) -> None:
    """A tokenizer that checkpoint.json lists must be there, unchanged."""
    tokenizer = tmp_path / "tokenizer.json"
    byte_level().save(str(tokenizer))
    plugin = load_plugin("gru")
    config = plugin.config_class(vocabulary_size=258, hidden_size=6)
    save_checkpoint(
        tmp_path,
        name="m",
        plugin_name="gru",
        config=config,
        module=plugin.build(config),
        tokenizer_file=tokenizer,
    )
    tokenizer.unlink()

    assert "tokenizer.json: missing" in error(tmp_path)


def test_a_module_without_a_method_that_its_plugin_promises_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plugin and the method are named when the checkpoint is loaded, before anything is traced."""
    write(tmp_path)
    monkeypatch.setattr(type(load_plugin("lstm")), "mixes", True)

    assert error(tmp_path).startswith("plugin 'lstm': its module RecurrentModule has no method `forward_mixed`")
