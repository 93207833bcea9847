"""Checkpoints of Hugging Face transformers that cannot be imported, and why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
import typer
from typer.testing import CliRunner

from statewise.errors import ConfigError
from statewise_training.checkpoints.checkpoint import load_checkpoint
from statewise_training.checkpoints.hugging_face.importer import import_checkpoint
from statewise_training.checkpoints.weights import read_weights
from statewise_training.cli.import_ import import_
from tests.training.checkpoints.test_hugging_face import change_config, change_tensors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "model_type 'bert' cannot be imported; those that can: bart, gpt2, llama"),
        ({"model_type": None}, "model_type"),
        ({"hidden_act": "gelu"}, r"hidden_act: .*'silu'.*got 'gelu'.*cannot be imported"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, r"rope_scaling\.type: .*got 'dynamic'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 8.0}}, r"rope_parameters\.rope_type: .*got 'yarn'"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_type 'linear' needs factor"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "needs low_freq_factor, high_freq_factor"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "full_attention"),
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor: .*got 0\.5"),
        ({"model_type": "mistral", "sliding_window": 64}, "sliding_window 64 .* --max-positions 64"),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1},
            "sliding_window 64",
        ),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_size": "wide"}, r"hidden_size: .*got 'wide'"),
        ({"hidden_size": 10**15, "head_dim": None}, "sizes that no tensor can have"),
        ({"max_position_embeddings": 10**12}, r"max_positions: .*less than or equal to 1048576 \(got 1000000000000\)"),
        ({"head_dim": 12}, "multiple of 8, got 12"),
        ({"num_key_value_heads": 3}, "num_heads 8 is no multiple of num_key_value_heads 3"),
        ({"bos_token_id": 200}, "bos_token_id 200 is not in the vocabulary"),
        ({"model_type": "gpt2"}, "n_positions: Field required"),
    ],
)
def test_settings_that_cannot_be_held_are_refused(
    llama: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """A model that would decode differently here is refused, naming key and value, and nothing is written."""
    change_config(llama, **changes)

    with pytest.raises(ConfigError, match=message):
        import_checkpoint(llama, tmp_path / "out")

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes", [{"scale_attn_by_inverse_layer_idx": True}, {"scale_attn_weights": False}, {"add_cross_attention": True}]
)
def test_gpt2_with_other_attention_is_refused(
    folders: dict[str, Path], tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Attention that is scaled otherwise, or looks at an encoder, is refused by its key."""
    config = json.loads((folders["gpt2"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))

    with pytest.raises(ConfigError, match=next(iter(changes))):
        import_checkpoint(tmp_path, tmp_path / "out")


def test_tensors_that_do_not_fit_are_listed(llama: Path, tmp_path: Path) -> None:
    """Missing, left over and wrongly shaped tensors are listed together, by the names in the file."""
    key = "model.layers.1.self_attn.k_proj.weight"
    change_tensors(llama, {"model.norm.weight": None, "score.weight": torch.ones(2), key: torch.ones(64, 16)})

    with pytest.raises(ConfigError) as caught:
        import_checkpoint(llama, tmp_path / "out")

    assert "missing: model.norm.weight" in str(caught.value)
    assert "not part of this model: score.weight" in str(caught.value)
    assert f"{key} has shape [64, 16], expected [16, 64]" in str(caught.value)


def test_weights_in_eight_bits_are_refused(llama: Path, tmp_path: Path) -> None:
    """Numbers that mean nothing without their scales are refused by their type."""
    key = "model.layers.1.mlp.up_proj.weight"
    change_tensors(llama, {key: torch.ones(144, 64).to(torch.float8_e4m3fn)})

    with pytest.raises(ConfigError, match=r"layers\.1\.up\.weight holds torch\.float8_e4m3fn, expected torch\.float32"):
        import_checkpoint(llama, tmp_path / "out")


def test_a_joint_matrix_of_another_shape_is_shown_as_the_file_has_it(folders: dict[str, Path], tmp_path: Path) -> None:
    """GPT-2's transposed joint matrix is expected as GPT-2 stores it."""
    for file in folders["gpt2"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    change_tensors(tmp_path, {"transformer.h.0.attn.c_attn.weight": torch.ones(192, 64)})

    with pytest.raises(ConfigError, match=r"h\.0\.attn\.c_attn\.weight has shape \[192, 64\], expected \[64, 192\]"):
        import_checkpoint(tmp_path, tmp_path / "out")


def test_pickles_are_refused_unread(llama: Path, tmp_path: Path) -> None:
    """A pickle is refused under its own name, and under that of safetensors."""
    weights = llama / "model.safetensors"
    torch.save(read_weights(weights), llama / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ConfigError, match=r"pickles \(pytorch_model\.bin\).*save_pretrained"):
        import_checkpoint(llama, tmp_path / "out")

    (llama / "pytorch_model.bin").rename(weights)
    with pytest.raises(ConfigError, match="is a pickle"):
        import_checkpoint(llama, tmp_path / "out")

    weights.unlink()
    with pytest.raises(ConfigError, match=r"has neither model\.safetensors nor model\.safetensors\.index\.json"):
        import_checkpoint(llama, tmp_path / "out")


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "absent.safetensors"}, r"absent\.safetensors: cannot be read"),
        ({"a": "../llama/model.safetensors"}, "not a plain file name"),
        ({"a": "shard.safetensors"}, "missing in the shards that it names: a"),
        (["shard.safetensors"], "weight_map"),
    ],
)
def test_an_index_that_leads_nowhere_is_refused(llama: Path, tmp_path: Path, weight_map: Any, message: str) -> None:
    """Shards must lie in the folder and hold what the index says."""
    (llama / "model.safetensors").rename(llama / "shard.safetensors")
    (llama / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    with pytest.raises(ConfigError, match=message):
        import_checkpoint(llama, tmp_path / "out")


def test_an_existing_checkpoint_is_not_written_over(llama: Path, tmp_path: Path) -> None:
    """Neither the imported folder itself nor any other that holds something."""
    before = sorted(file.name for file in llama.iterdir())

    with pytest.raises(ConfigError, match=r"--output .*exists and is not an empty folder"):
        import_checkpoint(llama, llama)

    assert sorted(file.name for file in llama.iterdir()) == before


@pytest.mark.parametrize(
    ("config", "message"), [(None, "has no config.json"), ("{", "Invalid JSON"), ("[1]", "config.json: record")]
)
def test_a_folder_without_a_readable_config_is_refused(tmp_path: Path, config: str | None, message: str) -> None:
    """A missing config.json, and one that is no JSON object, are told in one line."""
    if config is not None:
        (tmp_path / "config.json").write_text(config)

    with pytest.raises(ConfigError, match=message) as caught:
        import_checkpoint(tmp_path, tmp_path / "out", name="model")

    assert "\n" not in str(caught.value)


def test_a_folder_whose_name_no_model_can_have_needs_a_name(tmp_path: Path) -> None:
    """The folder's name is the model's, unless one is given."""
    with pytest.raises(ConfigError, match=r"--name 'my model': .*give another"):
        import_checkpoint(tmp_path / "my model", tmp_path / "out")


def test_the_program_refuses_a_pickle_with_exit_code_2(llama: Path, tmp_path: Path) -> None:
    """As a process of its own: one readable message on stderr, nothing on stdout, nothing written."""
    (llama / "model.safetensors").rename(llama / "pytorch_model.bin")
    command = [sys.executable, "-m", "statewise", "import", str(llama), "--output", str(tmp_path / "out")]

    done = subprocess.run(command, capture_output=True, text=True, timeout=120)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert "pickles (pytorch_model.bin)" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_command_tells_what_it_imported(folders: dict[str, Path], tmp_path: Path) -> None:
    """The command writes a checkpoint and prints its size, special tokens and folder."""
    app = typer.Typer()
    app.command()(import_)

    arguments = [str(folders["llama"]), "--output", str(tmp_path / "out"), "--name", "mine", "--max-positions", "100"]
    result = CliRunner().invoke(app, arguments)

    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "mine: 2 layers, width 64, vocabulary 200, 100 positions",
        "tokenizer: none: prompts are token ids (save_pretrained of a fast tokenizer writes tokenizer.json)",
        "start token: None, end token: 4",
        f"checkpoint: {tmp_path / 'out'}",
    ]
    assert load_checkpoint(tmp_path / "out").name == "mine"
