"""Checkpoints: a folder with a model's weights, tokenizer and description; from training, or of one's own.

    save_checkpoint(Path("mine"), name="mine", plugin_name="lstm", config=config, module=module)

`checkpoint.json` is written last and holds the hashes of the other files, so half a folder is told from a
whole one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.numpy
from pydantic import Field, ValidationError
from torch import nn

from statewise.bundles.manifest import FileName, ModelName, Sha256, SpecialTokens
from statewise.bundles.manifest_file import describe
from statewise.bundles.reader import hash_file
from statewise.errors import ConfigError, NotFoundError
from statewise.files import atomic_file, write_atomically
from statewise.model.spec import Strict
from statewise.plugins import PluginConfig, SequencePlugin, build_module, load_plugin
from statewise.versions import installed_versions
from statewise_training.checkpoints.held_out import Items, Pair, read_items, read_pairs, to_tensors
from statewise_training.checkpoints.weights import load_weights, read_weights, save_weights
from statewise_training.data.standardization import Standardization
from statewise_training.data.surround import with_surround
from statewise_training.families.shared.standardized import Standardized, StandardizedInput

CHECKPOINT_FILE = "checkpoint.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
HELD_OUT_FILE = "heldout.safetensors"


class CheckpointRecord(Strict):
    """`checkpoint.json`."""

    schema_version: Literal[2] = 2
    name: ModelName
    plugin: str
    config: dict[str, Any]
    special_tokens: SpecialTokens = SpecialTokens()
    standardization: Standardization | None = None
    created_with: dict[str, str] = Field(default_factory=dict)
    files: dict[FileName, Sha256] = Field(min_length=1)


@dataclass(frozen=True)
class Checkpoint:
    """A model that was trained, ready to run: evaluation mode, no gradients, on the CPU."""

    name: str
    plugin: SequencePlugin[Any]
    config: PluginConfig
    module: nn.Module
    special_tokens: SpecialTokens
    tokenizer_file: Path | None
    folder: Path
    files: tuple[str, ...]
    """Files that `checkpoint.json` lists."""
    standardization: Standardization | None = None

    def held_out(self) -> Items | None:
        """Items that training has not seen, `[time]` or `[time, features]`, unstandardised; None where none were kept.

        Raises ConfigError where they are not what the model reads.
        """
        spec = self.plugin.spec(self.config)
        if HELD_OUT_FILE not in self.files or spec.source is not None:
            return None
        return read_items(self.folder / HELD_OUT_FILE, spec)

    def held_out_pairs(self) -> list[Pair] | None:
        """Pairs of source and target that training has not seen; None where none were kept.

        An autoencoder makes its sources of its own items, so there are none of it.
        Raises ConfigError where they are not what the model reads.
        """
        spec = self.plugin.spec(self.config)
        if HELD_OUT_FILE not in self.files or spec.source is None or spec.embedding is not None:
            return None
        return read_pairs(self.folder / HELD_OUT_FILE, spec)

    def in_raw_units(self) -> nn.Module:
        """The module as it is served: it reads and gives the series as it was before standardisation.

        Raises ConfigError where the standardisation is not one number per feature of the model.
        """
        if self.standardization is None:
            return self.module
        spec = self.plugin.spec(self.config)
        features = getattr(spec.input, "features", 0)
        if len(self.standardization.mean) != features:
            raise ConfigError(
                f"{self.folder / CHECKPOINT_FILE}: standardization is of {len(self.standardization.mean)} features, "
                f"but the model reads {features or 'tokens'}"
            )
        scale = self.standardization.mean, self.standardization.deviation
        wrapped = (
            Standardized(self.module, spec.head, *scale) if spec.generates else StandardizedInput(self.module, *scale)
        )
        return wrapped.eval()


def save_checkpoint(
    folder: Path,
    *,
    name: str,
    plugin_name: str,
    config: PluginConfig,
    module: nn.Module,
    special_tokens: SpecialTokens = SpecialTokens(),  # noqa: B008 # frozen
    tokenizer_file: Path | None = None,
    standardization: Standardization | None = None,
    held_out: Items | Sequence[Pair] | None = None,
) -> None:
    """Write a model to a folder, which is made if need be; other files in it stay.

    `held_out`: items `[time]` or `[time, features]`, or pairs, that the model was not trained on, not standardised; the
    first of them are kept, and `statewise export` measures on them what quantization costs. The tokens around a text
    that an encoder reads (`special_tokens.surround`) are those that the tokenizer adds, unless they are given.
    Raises ConfigError for a name that no model can have, and for special tokens that cannot be used.
    """
    special_tokens = with_surround(special_tokens, load_plugin(plugin_name).spec(config), tokenizer_file)
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(module, folder / WEIGHTS_FILE)
    files = {WEIGHTS_FILE: hash_file(folder / WEIGHTS_FILE)}
    if tokenizer_file is not None:
        _copy(tokenizer_file, folder / TOKENIZER_FILE)
        files[TOKENIZER_FILE] = hash_file(folder / TOKENIZER_FILE)
    if held_out is not None and len(held_out) > 1:
        write_atomically(folder / HELD_OUT_FILE, safetensors.numpy.save(to_tensors(held_out)))
        files[HELD_OUT_FILE] = hash_file(folder / HELD_OUT_FILE)
    try:
        record = CheckpointRecord(
            name=name,
            plugin=plugin_name,
            config=config.model_dump(mode="json"),
            special_tokens=special_tokens,
            standardization=standardization,
            created_with=installed_versions(("statewise", "torch", "lightning", "tokenizers", "safetensors")),
            files=files,
        )
    except ValidationError as error:
        raise ConfigError(f"checkpoint: {describe(error)}") from error
    write_atomically(folder / CHECKPOINT_FILE, record.model_dump_json(indent=2) + "\n")


def _copy(source: Path, target: Path) -> None:
    if target.exists() and source.samefile(target):
        return
    with source.open("rb") as reader, atomic_file(target) as writer:
        shutil.copyfileobj(reader, writer)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Load the model in a folder that training, or `save_checkpoint`, has written.

    Raises ConfigError for a folder or file that is missing, damaged or not what `checkpoint.json` says, for a module
    without a method that its plugin promises, and for weights that do not fit it or are not finite.
    """
    record = _read_record(folder)
    try:
        plugin = load_plugin(record.plugin)
        config = plugin.config_class.model_validate(record.config)
    except NotFoundError as error:
        raise ConfigError(f"{folder / CHECKPOINT_FILE}: {error}") from error
    except ValidationError as error:
        raise ConfigError(
            f"{folder / CHECKPOINT_FILE}: config of plugin {record.plugin!r}: {describe(error)}"
        ) from error
    module = build_module(plugin, config)
    load_weights(module, read_weights(folder / WEIGHTS_FILE), str(folder / WEIGHTS_FILE))
    _check_hashes(folder, record)
    return Checkpoint(
        name=record.name,
        plugin=plugin,
        config=config,
        module=module.eval().requires_grad_(False),
        special_tokens=record.special_tokens,
        tokenizer_file=folder / TOKENIZER_FILE if TOKENIZER_FILE in record.files else None,
        folder=folder,
        files=tuple(record.files),
        standardization=record.standardization,
    )


def _read_record(folder: Path) -> CheckpointRecord:
    path = folder / CHECKPOINT_FILE
    if not folder.is_dir():
        raise ConfigError(f"checkpoint {folder}: no such folder; give the output folder of `statewise train`")
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ConfigError(
            f"checkpoint {folder}: has no {CHECKPOINT_FILE}; training there has not finished "
            "(give `statewise train` again), or it is not the output folder of a run"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if isinstance(content, dict) and content.get("schema_version") == 1:
        raise ConfigError(f"{path}: schema_version 1 is older than this release reads (2); train or save it again")
    try:
        return CheckpointRecord.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{path}: {describe(error)}") from error


def _check_hashes(folder: Path, record: CheckpointRecord) -> None:
    for name, expected in record.files.items():
        path = folder / name
        if not path.is_file():
            raise ConfigError(f"{path}: missing, though {CHECKPOINT_FILE} lists it")
        if hash_file(path) != expected:
            raise ConfigError(
                f"{path}: changed since {CHECKPOINT_FILE} was written (sha256 differs); "
                "write the folder anew with statewise_training.checkpoints.checkpoint.save_checkpoint"
            )
