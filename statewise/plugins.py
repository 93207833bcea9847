"""The plugin API: what adds a model family, and the registry that finds it.

A plugin lives in any installed package and is announced by an entry point:

    [project.entry-points."statewise.plugins"]
    gru = "training.recurrent.plugin:GRUPlugin"

This module imports no torch; a plugin's `build` does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from statewise.errors import ConfigError, NotFoundError
from statewise.manifest import ModelSpec

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

ENTRY_POINT_GROUP = "statewise.plugins"


class PluginConfig(BaseModel):
    """Base of a plugin's configuration: frozen, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


ConfigT = TypeVar("ConfigT", bound=PluginConfig)


class SequencePlugin(ABC, Generic[ConfigT]):
    """One model family.

    The module that `build` returns is a step function over state, used unchanged by training (zero state, whole
    sequence), by the reference decoder and by export:

        forward(items, lengths, state) -> (hidden, new_state)
        head(hidden) -> output

    items      int64 `[row, time]` (tokens) or float32 `[row, time, features]` (real vectors), right-padded
    lengths    int64 `[row]`: how many of the `time` items of each row are real; 0 leaves the row's state as it was
    state      a tuple of tensors in the order of `ModelSpec.state`; zeros start a sequence
    hidden     `[row, time, width]`: what the head reads; what lies beyond a row's length is undefined
    output     float32 `[..., vocabulary_size]` logits or `[..., features]` values, as the head says

    Where `mixes` is True there is also the mixed step, which reads the weights once for one item of each of some rows
    and a chunk of a prompt of one row more, and gives the same numbers as two calls of `forward`:

        forward_mixed(items, state, chunk, chunk_state) -> (hidden, new_state, new_chunk_state)

    items `[row, 1, ...]`, chunk `[1, time, ...]`, hidden `[row + 1, width]`: of each row's item and the chunk's last.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[PluginConfig]]
    mixes: ClassVar[bool] = False
    """Whether the module has a mixed step: worth while where a step is bound by reading the weights."""

    @abstractmethod
    def spec(self, config: ConfigT) -> ModelSpec:
        """What a model of this configuration reads, carries and gives."""

    @abstractmethod
    def build(self, config: ConfigT) -> torch.nn.Module:
        """The step function, with freshly initialised weights."""

    @abstractmethod
    def loss(self, output: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Mean loss per real item, a scalar in nats (categorical) or squared units (value).

        output `[row, time, ...]`, targets `[row, time]` or `[row, time, features]`, mask bool `[row, time]`.
        """

    def fit(self, module: torch.nn.Module, config: ConfigT, documents: Sequence[NDArray[Any]]) -> bool:
        """Give the module its best weights in closed form; False, and no change, where they must be found by gradient.

        `documents` is all training data, each int32 `[time]` (tokens) or float32 `[time, features]` (real vectors); all
        but the first item of each are to be predicted. Raises ConfigError where the data leaves the weights open.
        """
        return False

    def for_data(self, config: dict[str, Any], item_size: int, *, tokens: bool) -> dict[str, Any]:
        """The raw configuration, with the size that tokenizer (vocabulary) or data (features) turned out to have."""
        return {**config, "vocabulary_size" if tokens else "features": item_size}


def available_plugins() -> dict[str, EntryPoint]:
    """Every announced plugin by name; nothing is imported."""
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}


def load_plugin(name: str) -> SequencePlugin[Any]:
    """Import the plugin of that name.

    Raises NotFoundError where none is announced, ConfigError where it cannot be imported or is no plugin.
    """
    entries = available_plugins()
    if name not in entries:
        known = ", ".join(sorted(entries)) or "none"
        raise NotFoundError(f"no plugin named {name!r} is installed (installed: {known})")
    try:
        plugin = entries[name].load()()
    except ImportError as error:
        raise ConfigError(
            f"plugin {name!r} ({entries[name].value}) cannot be imported: {error}. "
            "Training and export need: pip install 'statewise[train]'"
        ) from error
    if not isinstance(plugin, SequencePlugin):
        raise ConfigError(f"plugin {name!r} ({entries[name].value}) is no SequencePlugin")
    return plugin
