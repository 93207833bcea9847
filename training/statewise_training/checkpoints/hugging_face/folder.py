"""The files of a Hugging Face checkpoint folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from torch import Tensor

from statewise.bundles.manifest import FileName
from statewise.bundles.manifest_file import describe
from statewise.errors import ConfigError
from statewise_training.checkpoints.hugging_face.bart import BartConfig
from statewise_training.checkpoints.hugging_face.family import HuggingFaceConfig
from statewise_training.checkpoints.hugging_face.gpt2 import GPT2Config
from statewise_training.checkpoints.hugging_face.llama import LlamaConfig
from statewise_training.checkpoints.weights import read_weights

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
GENERATION_FILE = "generation_config.json"
INDEX_FILE = "model.safetensors.index.json"

FAMILIES: dict[str, type[HuggingFaceConfig]] = {
    "bart": BartConfig,
    "gpt2": GPT2Config,
    "llama": LlamaConfig,
    "marian": BartConfig,
    "mbart": BartConfig,
    "mistral": LlamaConfig,
    "pegasus": BartConfig,
    "qwen2": LlamaConfig,
}

_NOT_SUPPORTED = {"literal_error", "none_required", "greater_than_equal", "less_than_equal"}
"""Validation errors for values that transformers may support and this program does not."""

Model = TypeVar("Model", bound=BaseModel)


class _Kind(BaseModel):
    model_type: str


class _Generation(BaseModel):
    bad_words_ids: list[list[int]] | None = None
    decoder_start_token_id: int | None = None
    eos_token_id: int | list[int] | None = None


class _Index(BaseModel):
    weight_map: dict[str, FileName]


def read_config(folder: Path) -> HuggingFaceConfig:
    """Read `config.json`. Raises ConfigError for a family or setting that cannot be imported, naming the key."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ConfigError(
            f"{folder}: has no {CONFIG_FILE}; give a folder that Hugging Face transformers wrote (save_pretrained)"
        )
    model_type = _parse(_Kind, path).model_type
    if model_type not in FAMILIES:
        raise ConfigError(
            f"{path}: model_type {model_type!r} cannot be imported; those that can: {', '.join(FAMILIES)}"
        )
    generation = _generation_settings(folder)
    # generation_config.json decides the end tokens: chat models also end at the end of a turn.
    ends = {key: value for key, value in generation.items() if key == "eos_token_id"}
    return _validate(FAMILIES[model_type], json.dumps(generation | json.loads(_read(path)) | ends), path)


def _generation_settings(folder: Path) -> dict[str, Any]:
    """Read the decoding settings; older versions of transformers kept them in config.json."""
    path = folder / GENERATION_FILE
    if not path.is_file():
        return {}
    return _parse(_Generation, path).model_dump(exclude_none=True)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read all weights, from one file or from the shards that the index names. Raises ConfigError."""
    if (folder / WEIGHTS_FILE).is_file():
        return read_weights(folder / WEIGHTS_FILE)
    if (folder / INDEX_FILE).is_file():
        return _read_shards(folder)
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickles:
        raise ConfigError(
            f"{folder}: holds its weights as pickles ({', '.join(pickles)}), which can run code when read. If you "
            f"trust them, load the folder with transformers and save_pretrained it again, which writes {WEIGHTS_FILE}"
        )
    raise ConfigError(f"{folder}: has neither {WEIGHTS_FILE} nor {INDEX_FILE}; copy the weights there")


def _read_shards(folder: Path) -> dict[str, Tensor]:
    shard_of = _parse(_Index, folder / INDEX_FILE).weight_map
    shards = {file: read_weights(folder / file) for file in sorted(set(shard_of.values()))}
    misplaced = sorted(name for name, file in shard_of.items() if name not in shards[file])
    if misplaced:
        raise ConfigError(
            f"{folder / INDEX_FILE}: tensors missing in the shards that it names: {', '.join(misplaced)}; "
            "copy the folder again"
        )
    return {name: tensor for shard in shards.values() for name, tensor in shard.items()}


def _parse(model: type[Model], path: Path) -> Model:
    return _validate(model, _read(path), path)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def _validate(model: type[Model], content: str | bytes, path: Path) -> Model:
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        is_unknown = any(fault["type"] in _NOT_SUPPORTED for fault in error.errors())
        remedy = "; a model with other settings than these cannot be imported" if is_unknown else ""
        raise ConfigError(f"{path}: {describe(error)}{remedy}") from error
