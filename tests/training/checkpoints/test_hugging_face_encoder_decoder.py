"""Encoder-decoders of Hugging Face transformers, with random weights, against what the import makes of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from tokenizers import processors
from transformers import BartConfig, MarianConfig, MBartConfig, PegasusConfig, PreTrainedModel

from statewise.bundles.manifest import SpecialTokens, Surround
from statewise.errors import ConfigError
from statewise.rules.sampling import GREEDY
from statewise_training.checkpoints.checkpoint import Checkpoint, load_checkpoint
from statewise_training.checkpoints.hugging_face.importer import import_checkpoint
from statewise_training.checkpoints.weights import read_weights
from statewise_training.reference.decoding import ReferenceDecoder
from tests.models import byte_tokenizer

transformers.utils.logging.disable_progress_bar()

SIZES = {
    "vocab_size": 300,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 40,
    "init_std": 0.3,
}
IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "forced_eos_token_id": None}

CONFIGS: dict[str, transformers.PreTrainedConfig] = {
    "bart": BartConfig(**SIZES, **IDS, decoder_start_token_id=1),
    "bart-uneven": BartConfig(
        **{**SIZES, "encoder_layers": 1, "decoder_layers": 3},
        **IDS,
        decoder_start_token_id=1,
        scale_embedding=True,
        activation_function="relu",
    ),
    "mbart": MBartConfig(**SIZES, **IDS, decoder_start_token_id=5),
    "marian": MarianConfig(**SIZES, **IDS, decoder_start_token_id=2, scale_embedding=True, activation_function="swish"),
    "marian-two-vocabularies": MarianConfig(
        **SIZES,
        **IDS,
        decoder_start_token_id=2,
        decoder_vocab_size=210,
        share_encoder_decoder_embeddings=False,
        tie_word_embeddings=False,
    ),
    "pegasus": PegasusConfig(**SIZES, **IDS, decoder_start_token_id=2, scale_embedding=True),
}
SOURCES = [np.random.default_rng(length).integers(3, 300, length) for length in (1, 7, 40)]
TARGET = np.random.default_rng(0).integers(3, 200, 12)


def make_model(name: str) -> PreTrainedModel:
    """Build a model with random weights, biases and norms too: transformers starts those at zero and one."""
    torch.manual_seed(0)
    model = transformers.AutoModelForSeq2SeqLM.from_config(CONFIGS[name]).eval()
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            if tensor.dim() == 1:
                tensor.copy_(torch.randn_like(tensor) * 0.2 + (0.0 if key.endswith("bias") else 1.0))
        model.final_logits_bias.normal_()
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Save every model as transformers does; not to be changed."""
    root = tmp_path_factory.mktemp("models")
    for name in CONFIGS:
        make_model(name).save_pretrained(root / name)
    return {name: root / name for name in CONFIGS}


@pytest.fixture
def bart(folders: dict[str, Path], tmp_path: Path) -> Path:
    """Give a copy of BART's folder, to be changed."""
    copy = tmp_path / "bart"
    copy.mkdir()
    for file in folders["bart"].iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def imported(folder: Path, output: Path, **options: Any) -> Checkpoint:
    import_checkpoint(folder, output, **options)
    return load_checkpoint(output)


def decoder_of(checkpoint: Checkpoint) -> ReferenceDecoder:
    return ReferenceDecoder(checkpoint.module, checkpoint.plugin.spec(checkpoint.config))


@torch.inference_mode()
def logits_of_transformers(folder: Path, source: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    ids = torch.from_numpy(source)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return model(**inputs, decoder_input_ids=torch.from_numpy(TARGET)[None]).logits[0].numpy()


@torch.inference_mode()
def decoded_by_transformers(folder: Path, source: np.ndarray[Any, Any], count: int) -> list[int]:
    """Tokens of greedy decoding by transformers behind its start token; the end token does not end it."""
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    ids = torch.from_numpy(source)[None]
    generated = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=count,
        min_new_tokens=count,
        eos_token_id=None,
        pad_token_id=0,
    )
    return generated[0, 1:].tolist()


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_transformers(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """For sources of one item to the longest in one batch, at every position of the target."""
    expected = [logits_of_transformers(folders[name], source) for source in SOURCES]

    actual = decoder_of(imported(folders[name], tmp_path / "out")).outputs([TARGET] * len(SOURCES), SOURCES)

    for mine, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["bart", "marian"])
def test_greedy_decoding_is_that_of_transformers(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """Token for token, from the start token of the configuration."""
    checkpoint = imported(folders[name], tmp_path / "out")
    expected = [decoded_by_transformers(folders[name], source, 30) for source in SOURCES]

    start = [np.array([checkpoint.special_tokens.start])] * len(SOURCES)
    actual, _ = decoder_of(checkpoint).generate(start, [GREEDY] * len(SOURCES), 30, SOURCES)

    assert [row.tolist() for row in actual] == expected
    assert len({tuple(row) for row in expected}) == len(SOURCES)


def test_tied_copies_and_sinusoids_in_the_file_change_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    """Versions of transformers differ in which of the shared tensors they save, and under which name."""
    other = tmp_path / "other"
    transformers.AutoModelForSeq2SeqLM.from_pretrained(folders["marian"]).save_pretrained(other)
    tensors = read_weights(other / "model.safetensors")
    shared = tensors.pop("model.shared.weight")
    tensors |= {f"model.{side}.embed_tokens.weight": shared.clone() for side in ("encoder", "decoder")}
    tensors |= {"lm_head.weight": shared.clone(), "model.encoder.embed_positions.weight": torch.zeros(40, 32)}
    safetensors.torch.save_file(tensors, other / "model.safetensors")

    one, two = (imported(folder, tmp_path / "out" / folder.name) for folder in (folders["marian"], other))

    expected = one.module.state_dict()
    assert two.module.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in two.module.state_dict().items())


def test_tokens_that_are_never_given_are_not(bart: Path, tmp_path: Path) -> None:
    """As transformers' settings of decoding say, such as Marian's padding; all other logits are as before."""
    path = bart / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "bad_words_ids": [[2], [7]]}))

    (actual,) = decoder_of(imported(bart, tmp_path / "out")).outputs([TARGET], SOURCES[1:2])

    expected = logits_of_transformers(bart, SOURCES[1])
    kept = np.delete(np.arange(300), [2, 7])
    np.testing.assert_allclose(actual[:, kept], expected[:, kept], rtol=1e-4, atol=1e-4)
    assert (actual[:, [2, 7]] < -1000).all()


def test_positions_of_either_side_can_be_cut(folders: dict[str, Path], tmp_path: Path) -> None:
    """What fits gives the same; and the memory of a row shrinks with the longest source."""
    checkpoint = imported(folders["bart"], tmp_path / "out", max_positions=12, max_source_positions=7)

    spec = checkpoint.plugin.spec(checkpoint.config)
    assert (spec.max_positions, spec.max_source_positions) == (12, 7)
    (actual,) = decoder_of(checkpoint).outputs([TARGET], SOURCES[1:2])
    np.testing.assert_allclose(actual, logits_of_transformers(folders["bart"], SOURCES[1]), rtol=1e-4, atol=1e-4)


def test_special_tokens_around_a_source_are_those_of_the_tokenizer(bart: Path, tmp_path: Path) -> None:
    """BART's puts bos before a text and eos behind it; the decoder begins with a token of its own."""
    tokenizer = byte_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 0), ("<end>", 1)]
    )
    tokenizer.save(str(bart / "tokenizer.json"))

    special = imported(bart, tmp_path / "out").special_tokens

    assert special == SpecialTokens(start=1, end=1, surround=Surround(before=(0,), after=(1,)))


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"decoder_ffn_dim": 64}, "encoder_ffn_dim 48 differs from decoder_ffn_dim 64"),
        ({"activation_function": "tanh"}, "activation_function"),
        ({"decoder_start_token_id": None}, "decoder_start_token_id"),
        ({"d_model": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4}, "multiple of 8"),
    ],
)
def test_settings_that_cannot_be_held_are_refused(
    bart: Path, tmp_path: Path, changes: dict[str, Any], part: str
) -> None:
    """The message names the key of config.json."""
    path = bart / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    with pytest.raises(ConfigError, match=part):
        import_checkpoint(bart, tmp_path / "out")


def test_source_positions_of_a_model_without_sources_are_refused(tmp_path: Path) -> None:
    """The option is named."""
    transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=20, n_embd=16, n_layer=1, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0
        )
    ).save_pretrained(tmp_path / "gpt2")

    with pytest.raises(ConfigError, match="--max-source-positions 8"):
        import_checkpoint(tmp_path / "gpt2", tmp_path / "out", max_source_positions=8)
