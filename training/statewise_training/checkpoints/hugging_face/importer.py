"""Import of a Hugging Face checkpoint folder as a checkpoint for `statewise export`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from statewise.bundles.manifest import ModelName, SpecialTokens
from statewise.bundles.manifest_file import describe
from statewise.errors import ConfigError
from statewise_training.checkpoints.checkpoint import TOKENIZER_FILE, save_checkpoint
from statewise_training.checkpoints.hugging_face.family import HuggingFaceConfig, Source
from statewise_training.checkpoints.hugging_face.folder import CONFIG_FILE, read_config, read_tensors
from statewise_training.checkpoints.weights import load_weights
from statewise_training.data.surround import read_tokenizer, surround_of
from statewise_training.families.transformer.config import TransformerConfig


@dataclass(frozen=True)
class Imported:
    """The outcome of an import."""

    name: str
    config: TransformerConfig
    special_tokens: SpecialTokens
    has_tokenizer: bool
    """Whether the model takes text; otherwise only token ids."""


def import_checkpoint(
    folder: Path,
    output: Path,
    *,
    name: str | None = None,
    max_positions: int | None = None,
    max_source_positions: int | None = None,
) -> Imported:
    """Write the model of a Hugging Face folder (a family of `folder.FAMILIES`) as a checkpoint folder.

    Raises ConfigError naming the setting, tensor or file that cannot be imported.
    """
    name = _checked_name(folder.resolve().name if name is None else name)
    _check_output(output)
    source = read_config(folder)
    limits = {"max_positions": max_positions, "max_source_positions": max_source_positions}
    whole, config = _configs(source, folder / CONFIG_FILE, limits)
    tokenizer_file = folder / TOKENIZER_FILE if (folder / TOKENIZER_FILE).is_file() else None
    special_tokens = _special_tokens(source, tokenizer_file)
    tensors = _translate(read_tensors(folder), source, whole, str(folder))
    module = source.plugin.build(config)
    load_weights(module, _cut_positions(tensors, module), str(folder))
    try:
        save_checkpoint(
            output,
            name=name,
            plugin_name=source.plugin.name,
            config=config,
            module=module,
            special_tokens=special_tokens,
            tokenizer_file=tokenizer_file,
        )
    except OSError as error:
        raise ConfigError(f"--output {output}: cannot be written: {error.strerror}") from error
    return Imported(name, config, special_tokens, has_tokenizer=tokenizer_file is not None)


def _cut_positions(tensors: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Cut learned positions to the module's number."""
    own = module.state_dict()
    return {
        name: tensor[: len(own[name])] if name.endswith("position_embedding.weight") else tensor
        for name, tensor in tensors.items()
    }


def _checked_name(name: str) -> str:
    try:
        return TypeAdapter(ModelName).validate_python(name)
    except ValidationError as error:
        raise ConfigError(
            f"--name {name!r}: a model's name is of letters, digits, '.', '_' and '-', at most 128; give another"
        ) from error


def _check_output(output: Path) -> None:
    # Never overwrite a trained checkpoint or the imported folder.
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ConfigError(f"--output {output}: exists and is not an empty folder; name a new one")


def _configs(
    source: HuggingFaceConfig, path: Path, limits: Mapping[str, int | None]
) -> tuple[TransformerConfig, TransformerConfig]:
    """Return the configuration of the whole model, and the one with the requested positions."""
    try:
        whole = source.convert()
    except ValidationError as error:
        raise ConfigError(f"{path}: {describe(error)}") from error
    wanted = {field: limit for field, limit in limits.items() if limit is not None}
    for field, limit in wanted.items():
        option, most = f"--{field.replace('_', '-')} {limit}", getattr(whole, field, None)
        if most is None:
            raise ConfigError(f"{option}: {path} describes a model without sources; leave it out")
        if not 2 <= limit <= most:
            raise ConfigError(f"{option}: must lie from 2 to the {most} that the model has")
    config = whole.model_copy(update=wanted)
    if source.window is not None and source.window < config.max_positions:
        raise ConfigError(
            f"{path}: sliding_window {source.window} is shorter than the model's {config.max_positions} positions, and "
            f"attention here has no window; import it with --max-positions {source.window}, where the window makes no "
            "difference"
        )
    return whole, config


def _special_tokens(source: HuggingFaceConfig, tokenizer_file: Path | None) -> SpecialTokens:
    """Return the end tokens, and the start token: the decoder's, or the one that the tokenizer puts before every text.

    Llama's tokenizer adds one. An encoder-decoder also has the tokens around its sources.
    """
    end, *others = source.end_tokens or [None]
    other_ends = tuple(token for token in others if token is not None)
    if tokenizer_file is None:
        return SpecialTokens(start=source.start_token, end=end, other_ends=other_ends)
    tokenizer = read_tokenizer(tokenizer_file)
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= source.vocab_size:
        raise ConfigError(
            f"{tokenizer_file}: has token id {largest}, but the model's vocab_size is {source.vocab_size}; "
            "put the model's own tokenizer there"
        )
    if source.start_token is not None:
        surround = surround_of(tokenizer, str(tokenizer_file))
        return SpecialTokens(start=source.start_token, end=end, other_ends=other_ends, surround=surround)
    has_start = source.bos_token_id is not None and tokenizer.encode("").ids[:1] == [source.bos_token_id]
    return SpecialTokens(start=source.bos_token_id if has_start else None, end=end, other_ends=other_ends)


def _translate(
    given: Mapping[str, Tensor], source: HuggingFaceConfig, config: TransformerConfig, where: str
) -> dict[str, Tensor]:
    """Return the tensors under our names. Raises ConfigError listing the misfits by the file's names."""
    given = source.named(given)
    shapes = _shapes(source, config, where)
    if config.tied_embeddings and "lm_head.weight" not in given:
        del shapes["output.weight"]
    sources = {name: source.source(name) for name in shapes}
    _check_shapes(given, {s.name: _stored_shape(shapes[name], s) for name, s in sources.items() if s}, where)
    return {name: _take(given[s.name], s) if s else source.constant(name, shapes[name]) for name, s in sources.items()}


def _shapes(source: HuggingFaceConfig, config: TransformerConfig, where: str) -> dict[str, torch.Size]:
    try:
        with torch.device("meta"):  # takes no memory
            return {name: tensor.shape for name, tensor in source.plugin.build(config).state_dict().items()}
    except RuntimeError as error:
        raise ConfigError(
            f"{where}: {CONFIG_FILE} gives sizes that no tensor can have; correct it ({error})"
        ) from error


def _check_shapes(given: Mapping[str, Tensor], expected: Mapping[str, torch.Size], where: str) -> None:
    wrong = [
        f"{name} has shape {list(given[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in given and given[name].shape != shape
    ]
    faults = [
        *_list("missing", expected.keys() - given.keys()),
        *_list("not part of this model", given.keys() - expected.keys()),
        *_list("wrongly shaped", wrong),
    ]
    if faults:
        raise ConfigError(f"{where}: tensors do not fit {CONFIG_FILE}: {'; '.join(faults)}")


def _list(what: str, names: Iterable[str]) -> list[str]:
    return [f"{what}: {', '.join(sorted(names))}"] if names else []


def _stored_shape(shape: torch.Size, source: Source) -> torch.Size:
    sizes = list(reversed(shape)) if source.is_transposed else list(shape)
    if source.part is not None:
        sizes[-1] *= 3
    sizes[0] += source.skipped
    return torch.Size([1, *sizes] if source.is_row else sizes)


def _take(stored: Tensor, source: Source) -> Tensor:
    if source.part is not None:
        stored = stored.chunk(3, dim=-1)[source.part]
    if source.is_row:
        stored = stored[0]
    stored = stored[source.skipped :]
    return stored.T if source.is_transposed and stored.dim() == 2 else stored
