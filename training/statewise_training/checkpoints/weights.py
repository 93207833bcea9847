"""Reading and writing weights: safetensors only, every name, shape and number checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from statewise.errors import ConfigError
from statewise.files import write_atomically

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Readable types; eight bits and fewer are left out, because they need scales stored elsewhere."""


def save_weights(module: nn.Module, path: Path) -> None:
    """Write a module's state dict; a tensor with several names (tied weights) is written once, under the first."""
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in module.state_dict(keep_vars=True).items()
        if name not in tied_names(module)
    }
    write_atomically(path, safetensors.torch.save(tensors, {"format": "pt"}))


def tied_names(module: nn.Module) -> dict[str, str]:
    """Map each repeated name of a tied tensor to its first name."""
    first: dict[int, str] = {}
    names = module.state_dict(keep_vars=True).items()
    return {name: first[id(tensor)] for name, tensor in names if first.setdefault(id(tensor), name) != name}


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors in a safetensors file. Raises ConfigError; a pickle is refused without being read."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    # A zip archive (torch.save) or a bare pickle; safetensors has a brace after its header's size, 8 bytes.
    if head[8:9] != b"{" and head.startswith((b"PK", b"\x80")):
        raise ConfigError(
            f"{path}: is a pickle (torch.save), which can run code when read. If you trust it, convert it: "
            "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors')"
        )
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ConfigError(f"{path}: damaged, or not in the safetensors format: {error}") from error


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy the tensors into the module.

    Raises ConfigError naming tensors that are missing, left over, of another shape, not numbers, or not finite.
    """
    own = module.state_dict()
    tied = tied_names(module)
    complete = {name: tensors[first] for name, first in tied.items() if first in tensors} | dict(tensors)
    complete |= {first: tensors[name] for name, first in tied.items() if name in tensors and first not in tensors}
    faults = [
        *_list("missing", own.keys() - complete.keys()),
        *_list("not part of this model", tensors.keys() - own.keys()),
        *(_mismatch(name, complete[name], own[name]) for name in own if name in complete),
        *(
            f"{name} and {first} are one tensor in this model, but differ in the file"
            for name, first in tied.items()
            if {name, first} <= tensors.keys() and not torch.equal(tensors[name], tensors[first])
        ),
    ]
    faults = [fault for fault in faults if fault]
    if faults:
        raise ConfigError(f"{source}: does not fit the model: {'; '.join(faults)}")
    module.load_state_dict(complete)


def _list(what: str, names: set[str]) -> list[str]:
    return [f"{what}: {', '.join(sorted(names))}"] if names else []


def _mismatch(name: str, given: Tensor, own: Tensor) -> str:
    if given.shape != own.shape:
        return f"{name} has shape {list(given.shape)}, expected {list(own.shape)}"
    is_readable = given.dtype in _FLOATS if own.is_floating_point() else not given.is_floating_point()
    if not is_readable:
        return f"{name} holds {given.dtype}, expected {own.dtype}"
    if given.is_floating_point() and not bool(given.isfinite().all()):
        return f"{name} holds {int((~given.isfinite()).sum())} values that are NaN or infinite"
    return ""


def rename(tensors: Mapping[str, Tensor], prefixes: Mapping[str, str], source: str) -> dict[str, Tensor]:
    """Give the tensors new names: `{encoder: embedding}` renames `encoder.weight` to `embedding.weight`.

    The longest prefix of whole parts wins. Raises ConfigError for a prefix without a match, or two tensors
    with one new name.
    """
    unused = set(prefixes)
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        matching = [prefix for prefix in prefixes if name == prefix or name.startswith(f"{prefix}.")]
        new_name = name
        if matching:
            prefix = max(matching, key=len)
            unused.discard(prefix)
            new_name = (prefixes[prefix] + name[len(prefix) :]).removeprefix(".")
        if new_name in renamed:
            raise ConfigError(f"{source}: two tensors would be named {new_name}; correct initialize_from.rename")
        renamed[new_name] = tensor
    if unused:
        raise ConfigError(
            f"initialize_from.rename: no tensor in {source} begins with {', '.join(sorted(unused))} "
            f"(it has {', '.join(sorted(tensors))})"
        )
    return renamed
