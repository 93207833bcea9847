"""Models of Hugging Face transformers, made here with random weights, against what the import makes of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
import typer
from transformers import GPT2Config, LlamaConfig, MistralConfig, PreTrainedModel, Qwen2Config
from typer.testing import CliRunner

from statewise.errors import ConfigError
from statewise.rules.sampling import GREEDY
from statewise_training.checkpoints.checkpoint import Checkpoint, load_checkpoint
from statewise_training.checkpoints.hugging_face.importer import import_checkpoint
from statewise_training.checkpoints.weights import read_weights
from statewise_training.cli.import_ import import_
from statewise_training.reference.decoding import ReferenceDecoder
from tests.models import byte_tokenizer

transformers.utils.logging.disable_progress_bar()

STEPS = 128

# Weights large enough that greedy decoding does not repeat itself, and small enough that float32 rounding, which grows
# with them from layer to layer, stays within the certificate's tolerance.
GPT2 = {"vocab_size": 200, "n_positions": 192, "n_embd": 64, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}
LLAMA = {
    "vocab_size": 200,
    "max_position_embeddings": 192,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 144,
    "initializer_range": 0.15,
}
IDS = {"bos_token_id": 3, "eos_token_id": 4}

CONFIGS: dict[str, transformers.PreTrainedConfig] = {
    "gpt2": GPT2Config(**GPT2, **IDS),
    "gpt2-untied": GPT2Config(
        **GPT2, **IDS, n_inner=96, activation_function="relu", layer_norm_epsilon=1e-3, tie_word_embeddings=False
    ),
    "gpt2-silu": GPT2Config(**GPT2, **IDS, activation_function="silu"),
    "llama": LlamaConfig(**LLAMA, **IDS, rope_parameters={"rope_type": "default", "rope_theta": 500_000.0}),
    "llama-tied": LlamaConfig(**LLAMA, **IDS, head_dim=24, tie_word_embeddings=True, rms_norm_eps=1e-3),
    "llama-attention-bias": LlamaConfig(**LLAMA, **IDS, attention_bias=True),
    "llama-bias": LlamaConfig(**LLAMA, **IDS, attention_bias=True, mlp_bias=True),
    "llama-3": LlamaConfig(
        **LLAMA,
        **IDS,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 48,
        },
    ),
    "mistral": MistralConfig(**LLAMA, **IDS, sliding_window=192),
    "qwen2": Qwen2Config(
        **LLAMA,
        **IDS,
        use_sliding_window=True,
        sliding_window=64,
        max_window_layers=2,
        rope_parameters={"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
    ),
}


def make_model(name: str) -> PreTrainedModel:
    """Build a model with random weights, biases and norms too: transformers starts those at zero and one."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation="eager").eval()
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            if tensor.dim() == 1:
                tensor.copy_(torch.randn_like(tensor) * 0.2 + (0.0 if key.endswith("bias") else 1.0))
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Save every model as transformers does; not to be changed."""
    root = tmp_path_factory.mktemp("models")
    for name in CONFIGS:
        make_model(name).save_pretrained(root / name)
    return {name: root / name for name in CONFIGS}


@pytest.fixture
def llama(folders: dict[str, Path], tmp_path: Path) -> Path:
    """Give a copy of the Llama-style folder, to be spoilt."""
    copy = tmp_path / "llama"
    copy.mkdir()
    for file in folders["llama"].iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_tensors(folder: Path, changes: dict[str, torch.Tensor | None]) -> None:
    path = folder / "model.safetensors"
    tensors = {**read_weights(path), **changes}
    safetensors.torch.save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


def imported(folder: Path, output: Path, **options: Any) -> Checkpoint:
    import_checkpoint(folder, output, **options)
    return load_checkpoint(output)


def decoder_of(checkpoint: Checkpoint) -> ReferenceDecoder:
    return ReferenceDecoder(checkpoint.module, checkpoint.plugin.spec(checkpoint.config))


@torch.inference_mode()
def logits_of_transformers(folder: Path, row: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Logits at every position, `[time, vocabulary]`."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return model(torch.from_numpy(row)[None]).logits[0].numpy()


@torch.inference_mode()
def continued_by_transformers(folder: Path, prompt: np.ndarray[Any, Any]) -> list[int]:
    """Tokens of greedy decoding by transformers, over its own cache; the end token does not end it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.from_numpy(prompt)[None]
    generated = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=STEPS,
        min_new_tokens=STEPS,
        eos_token_id=None,
        pad_token_id=0,
    )
    return generated[0, len(prompt) :].tolist()


def prompt_of(length: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(length).integers(5, 200, length)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_greedy_tokens_are_those_of_transformers(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """Logits at every position lie within 1e-4 of transformers', and 128 greedy tokens are its own."""
    decoder = decoder_of(imported(folders[name], tmp_path / "out"))
    rows = [prompt_of(length) for length in (1, 63, 192)]

    ours = decoder.outputs(rows)
    (tokens,), _ = decoder.generate([prompt_of(17)], [GREEDY], STEPS)

    for row, logits in zip(rows, ours, strict=True):
        np.testing.assert_allclose(logits, logits_of_transformers(folders[name], row), atol=1e-4, rtol=0)
    assert len(set(tokens.tolist())) > 10, "a model that repeats itself proves little"
    assert tokens.tolist() == continued_by_transformers(folders[name], prompt_of(17))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_served_model_decodes_as_transformers_does(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    """Imported, exported with a certificate and served: logits within 1e-4 and the same 128 greedy tokens."""
    from statewise.bundles.reader import open_bundle
    from statewise_export.certify.driver import RuntimeDecoder
    from statewise_export.pipeline import export_checkpoint
    from statewise_server.engine import Engine, EngineSettings, GenerationRequest
    from statewise_server.engine.queue_channel import run_all
    from statewise_server.runtime.steps.runner import Runner

    exported = export_checkpoint(imported(folders[name], tmp_path / "out"), tmp_path / "models")
    assert exported.folder is not None, exported.certificates
    bundle = open_bundle(exported.folder)
    rows = [prompt_of(length) for length in (1, 2, 63, 64, 65, 191)]
    runner = Runner.load(bundle, "cpu-float32", max_rows=len(rows), intra_op_threads=1)
    outputs = RuntimeDecoder(runner).prefill(rows, [GREEDY] * len(rows), 16).outputs
    engine = Engine.load(bundle, "cpu-float32", EngineSettings(max_rows=2, intra_op_threads=1))
    engine.start()
    try:
        (output,) = run_all(engine, [GenerationRequest(prompt_of(17), GREEDY, STEPS)])
    finally:
        engine.close()

    for row, logits in zip(rows, outputs, strict=True):
        theirs = logits_of_transformers(folders[name], row)
        np.testing.assert_allclose(np.stack([*logits.values()]), theirs[[*logits]], atol=1e-4, rtol=0)
    assert list(output.items) == continued_by_transformers(folders[name], prompt_of(17))


def test_shards_and_half_precision_are_read(folders: dict[str, Path], tmp_path: Path) -> None:
    """Weights cut into shards and stored as bfloat16 are those of the whole file, rounded."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folders["llama"])
    model.to(torch.bfloat16).save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").exists()

    sharded = imported(tmp_path / "shards", tmp_path / "a").module.state_dict()
    whole = imported(folders["llama"], tmp_path / "b").module.state_dict()

    assert all(torch.equal(sharded[name], whole[name].bfloat16().float()) for name in whole)


def test_files_of_older_versions_are_read(folders: dict[str, Path], tmp_path: Path) -> None:
    """The first GPT-2 files name the bare decoder and hold masks; Llama's had `rope_theta` by itself."""
    for name in ("gpt2", "llama"):
        transformers.AutoModelForCausalLM.from_pretrained(folders[name]).save_pretrained(tmp_path / name)
    weights = tmp_path / "gpt2" / "model.safetensors"
    old = {name.removeprefix("transformer."): tensor for name, tensor in read_weights(weights).items()}
    safetensors.torch.save_file(old | {"h.0.attn.bias": torch.ones(1, 1, 192, 192)}, weights)
    change_config(tmp_path / "llama", rope_parameters=None, rope_theta=500_000)
    change_tensors(tmp_path / "llama", {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})

    for name in ("gpt2", "llama"):
        ours = decoder_of(imported(tmp_path / name, tmp_path / f"old-{name}")).outputs([prompt_of(20)])
        expected = decoder_of(imported(folders[name], tmp_path / f"new-{name}")).outputs([prompt_of(20)])
        np.testing.assert_array_equal(ours, expected)


def test_tokenizer_and_special_tokens_come_along(llama: Path, tmp_path: Path) -> None:
    """End tokens are generation_config.json's; the start token config.json's, where the tokenizer puts it first."""
    from tokenizers.processors import TemplateProcessing

    change_config(llama, bos_token_id=0, eos_token_id=3)
    (llama / "generation_config.json").write_text('{"eos_token_id": [1, 7]}')
    tokenizer = byte_tokenizer()
    tokenizer.save(str(llama / "tokenizer.json"))
    with pytest.raises(ConfigError, match=r"tokenizer\.json: has token id 257, but the model's vocab_size is 200"):
        import_checkpoint(llama, tmp_path / "out")

    change_config(llama, vocab_size=258)
    rows = torch.zeros(258, 64)
    change_tensors(llama, {"model.embed_tokens.weight": rows, "lm_head.weight": rows.clone()})
    plain = imported(llama, tmp_path / "plain").special_tokens
    tokenizer.post_processor = TemplateProcessing(single="<start> $A", special_tokens=[("<start>", 0)])
    tokenizer.save(str(llama / "tokenizer.json"))
    with_start = imported(llama, tmp_path / "start")

    assert (plain.start, plain.end, plain.other_ends) == (None, 1, (7,))
    assert (with_start.special_tokens.start, with_start.special_tokens.ends) == (0, {1, 7})
    assert with_start.tokenizer_file is not None


def test_positions_can_be_cut(folders: dict[str, Path], tmp_path: Path) -> None:
    """A model imported with fewer positions computes the same, as far as they go."""
    for name in ("gpt2", "llama"):
        short = imported(folders[name], tmp_path / name, max_positions=40, name="short")
        whole = imported(folders[name], tmp_path / f"{name}-whole")

        assert (short.name, short.config.max_positions) == ("short", 40)
        np.testing.assert_allclose(
            decoder_of(short).outputs([prompt_of(40)])[0], decoder_of(whole).outputs([prompt_of(40)])[0], atol=1e-5
        )
        with pytest.raises(ConfigError, match="--max-positions 193: must lie from 2 to the 192 that the model has"):
            import_checkpoint(folders[name], tmp_path / "long", max_positions=193)


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
