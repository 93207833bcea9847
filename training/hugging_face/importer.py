"""From a Hugging Face checkpoint folder to one that `statewise export` takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from statewise.errors import ConfigError
from statewise.manifest import ModelName, SpecialTokens
from statewise.manifest_file import describe
from training.checkpoint import TOKENIZER_FILE, save_checkpoint
from training.hugging_face.family import HuggingFaceConfig, Source
from training.hugging_face.folder import CONFIG_FILE, read_config, read_tensors
from training.tokenizers import load_tokenizer
from training.transformer.module import TransformerModule
from training.transformer.plugin import TransformerConfig
from training.weights import load_weights


@dataclass(frozen=True)
class Imported:
    """What was imported."""

    name: str
    config: TransformerConfig
    special_tokens: SpecialTokens
    other_end_tokens: tuple[int, ...]
    """Ids that end a text in transformers, but not here, where there is one."""


def import_checkpoint(
    folder: Path, output: Path, *, name: str | None = None, max_positions: int | None = None
) -> Imported:
    """Write the model of a Hugging Face folder (GPT-2, Llama, Mistral, Qwen2) as a checkpoint folder.

    Raises ConfigError for what cannot be imported: a setting, tensor or file, named.
    """
    name = _checked_name(folder.resolve().name if name is None else name)
    _check_output(output)
    source = read_config(folder)
    whole, config = _configs(source, folder / CONFIG_FILE, max_positions)
    tokenizer_file = folder / TOKENIZER_FILE if (folder / TOKENIZER_FILE).is_file() else None
    special_tokens = _special_tokens(source, tokenizer_file)
    tensors = _translate(read_tensors(folder), source, whole, str(folder))
    if "position_embedding.weight" in tensors:
        tensors["position_embedding.weight"] = tensors["position_embedding.weight"][: config.max_positions]
    module = TransformerModule(config)
    load_weights(module, tensors, str(folder))
    try:
        save_checkpoint(
            output,
            name=name,
            plugin_name="transformer",
            config=config,
            module=module,
            special_tokens=special_tokens,
            tokenizer_file=tokenizer_file,
        )
    except OSError as error:
        raise ConfigError(f"--output {output}: cannot be written: {error.strerror}") from error
    return Imported(name, config, special_tokens, tuple(source.end_tokens[1:]))


def _checked_name(name: str) -> str:
    try:
        return TypeAdapter(ModelName).validate_python(name)
    except ValidationError as error:
        raise ConfigError(
            f"--name {name!r}: a model's name is of letters, digits, '.', '_' and '-', at most 128; give another"
        ) from error


def _check_output(output: Path) -> None:
    # Never over a trained checkpoint, nor over the folder that is imported.
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ConfigError(f"--output {output}: exists and is not an empty folder; name a new one")


def _configs(
    source: HuggingFaceConfig, path: Path, max_positions: int | None
) -> tuple[TransformerConfig, TransformerConfig]:
    """The model as it is, and with as many positions as wanted."""
    try:
        whole = source.convert()
    except ValidationError as error:
        raise ConfigError(f"{path}: {describe(error)}") from error
    wanted = whole.max_positions if max_positions is None else max_positions
    if not 2 <= wanted <= whole.max_positions:
        raise ConfigError(f"--max-positions {wanted}: must lie from 2 to the {whole.max_positions} that the model has")
    if source.window is not None and source.window < wanted:
        raise ConfigError(
            f"{path}: sliding_window {source.window} is shorter than the model's {wanted} positions, and attention "
            f"here has no window; import it with --max-positions {source.window}, where the window makes no difference"
        )
    return whole, whole.model_copy(update={"max_positions": wanted})


def _special_tokens(source: HuggingFaceConfig, tokenizer_file: Path | None) -> SpecialTokens:
    """The end token, and the start token where the tokenizer puts it before every text, as Llama's does."""
    end = source.end_tokens[0] if source.end_tokens else None
    if tokenizer_file is None:
        return SpecialTokens(end=end)
    tokenizer = load_tokenizer(tokenizer_file)
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= source.vocab_size:
        raise ConfigError(
            f"{tokenizer_file}: has token id {largest}, but the model's vocab_size is {source.vocab_size}; "
            "put the model's own tokenizer there"
        )
    is_put_first = source.bos_token_id is not None and tokenizer.encode("").ids[:1] == [source.bos_token_id]
    return SpecialTokens(start=source.bos_token_id if is_put_first else None, end=end)


def _translate(
    given: Mapping[str, Tensor], source: HuggingFaceConfig, config: TransformerConfig, where: str
) -> dict[str, Tensor]:
    """The tensors under our names. Raises ConfigError listing, by the file's names, what does not fit."""
    given = _named_in_full(given, source)
    shapes = _shapes(config, where)
    if config.tied_embeddings and "lm_head.weight" not in given:
        del shapes["output.weight"]
    sources = {name: source.source(name) for name in shapes}
    _check_shapes(given, {s.name: _stored_shape(shapes[name], s) for name, s in sources.items() if s}, where)
    return {name: _take(given[s.name], s) if s else torch.zeros(shapes[name]) for name, s in sources.items()}


def _shapes(config: TransformerConfig, where: str) -> dict[str, torch.Size]:
    try:
        with torch.device("meta"):  # takes no memory
            return {name: tensor.shape for name, tensor in TransformerModule(config).state_dict().items()}
    except RuntimeError as error:
        raise ConfigError(
            f"{where}: {CONFIG_FILE} gives sizes that no tensor can have; correct it ({error})"
        ) from error


def _named_in_full(given: Mapping[str, Tensor], source: HuggingFaceConfig) -> dict[str, Tensor]:
    is_bare = not any(name.startswith(source.prefix) for name in given)
    named = {
        f"{source.prefix}{name}" if is_bare and name != "lm_head.weight" else name: tensor
        for name, tensor in given.items()
    }
    return {name: tensor for name, tensor in named.items() if not source.not_weights.search(name)}


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
    return torch.Size(sizes)


def _take(stored: Tensor, source: Source) -> Tensor:
    if source.part is not None:
        stored = stored.chunk(3, dim=-1)[source.part]
    return stored.T if source.is_transposed and stored.dim() == 2 else stored
