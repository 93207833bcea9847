"""The plugin API: what adds a model family, and the registry that finds it.

A plugin lives in any installed package and is announced by an entry point:

    [project.entry-points."statewise.plugins"]
    gru = "statewise_training.families.recurrent.plugin:GRUPlugin"

This module imports no torch; a plugin's `build` does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict

from statewise.errors import ConfigError, NotFoundError
from statewise.model.spec import InputSpec, ModelSpec, RealInput, TokenInput

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

ENTRY_POINT_GROUP = "statewise.plugins"


class PluginConfig(BaseModel):
    """Base of a plugin's configuration: frozen, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


ConfigT = TypeVar("ConfigT", bound=PluginConfig)


@dataclass(frozen=True)
class DataSpec:
    """What the data of a training run turned out to be."""

    input: InputSpec
    """Its items, with the size of the vocabulary or the number of features."""
    source: InputSpec | None = None
    """The items of the sources, where the data is pairs of source and target."""
    labels: tuple[str, ...] | None = None
    """The labels by index, where the data is labelled."""
    labels_per: Literal["sequence", "item"] | None = None
    value_size: int | None = None
    """Numbers that belong to each sequence, where it is these that are to be told."""


class Batch(Protocol):
    """What one step of training sees; rows are right-padded."""

    @property
    def items(self) -> torch.Tensor:
        """Items that the model reads, `[row, time]` or `[row, time, features]`."""

    @property
    def targets(self) -> torch.Tensor:
        """Items that it is to give, one step later; or labels `[row]` or `[row, time]`."""

    @property
    def mask(self) -> torch.Tensor:
        """Which items count in the loss, bool `[row, time]`: the real ones but for special tokens around a text."""

    @property
    def lengths(self) -> torch.Tensor:
        """How many items of each row are real, int64 `[row]`."""

    @property
    def source(self) -> torch.Tensor | None:
        """Sources, `[row, source]` or `[row, source, features]`, where the data is pairs."""

    @property
    def source_lengths(self) -> torch.Tensor | None:
        """How many items of each source are real, int64 `[row]`."""


class SequencePlugin(ABC, Generic[ConfigT]):
    """One model family.

    The module that `build` returns is a step function over state, used unchanged by training (first state, whole
    sequence), by the reference decoder and by export:

        forward(items, lengths, state) -> (hidden, new_state)
        head(hidden) -> output

    items      int64 `[row, time]` (tokens) or float32 `[row, time, features]` (real vectors), right-padded
    lengths    int64 `[row]`: how many of the `time` items of each row are real; 0 leaves the row's state as it was
    state      a tuple of tensors in the order of `ModelSpec.state`; zeros start a sequence
    hidden     `[row, time, width]`: what the head reads; what lies beyond a row's length is undefined
    output     float32 `[..., output_size]`, as the head says

    A model without state (an encoder) is called once with a whole sequence and `()` as its state; where its head gives
    one answer per sequence, hidden is `[row, width]`.

    An encoder-decoder (`ModelSpec.source`) makes the first state of the source:

        encode(source, source_lengths) -> state

    source `[row, source]` or `[row, source, features]`; every state tensor but the caches, in their order, memories
    with `max_source_positions` items along `source`.

    A model that generates and has `ModelSpec.embedding` also makes a vector of a sequence of its items:

        embed(items, lengths) -> embedding `[row, size]`

    Where `mixes` is True there is also the mixed step, which reads the weights once for one item of each of some rows
    and a chunk of a prompt of one row more, and gives the same numbers as two calls of `forward`:

        forward_mixed(items, state, chunk, chunk_state) -> (hidden, new_state, new_chunk_state)

    items `[row, 1, ...]`, chunk `[1, time, ...]`, hidden `[row + 1, width]`: of each row's item and the chunk's last.

    Where the plugin `inspects` a configuration, the module shows what goes on in whole sequences, from the first state:

        inspect(items, lengths) -> {name: tensor}

    Attention weights `[row, head, query, key]`, 0 where a query may not see a key, or activations `[row, time, unit]`;
    what lies beyond a row's length is undefined. Names are of the form `kind.layer`: `attention.0`, `forget_gate.1`.
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

    def inspects(self, config: ConfigT) -> bool:
        """Whether the module of this configuration has an `inspect`, for `statewise export --inspect`."""
        return False

    @abstractmethod
    def loss(self, config: ConfigT, output: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Mean loss per real item, a scalar in nats (categorical, mixture, labels) or squared units (value).

        output `[row, time, ...]`, targets `[row, time]` or `[row, time, features]`, mask bool `[row, time]`; without
        state output `[row, ...]` and targets `[row]` where there is one answer per sequence.
        """

    def fit(self, module: torch.nn.Module, config: ConfigT, documents: Sequence[NDArray[Any]]) -> bool:
        """Give the module its best weights in closed form; False, and no change, where they must be found by gradient.

        `documents` is all training data, each int32 `[time]` (tokens) or float32 `[time, features]` (real vectors); all
        but the first item of each are to be predicted. Raises ConfigError where the data leaves the weights open.
        """
        return False

    def training_loss(
        self, module: torch.nn.Module, config: ConfigT, batch: Batch, run: Callable[[Batch], torch.Tensor]
    ) -> torch.Tensor:
        """What a step of training lowers; `run` gives the module's outputs for a batch, from its first state.

        For families whose loss has other parts too; evaluation calls `loss` alone.
        """
        return self.loss(config, run(batch), batch.targets, batch.mask)

    def for_data(self, config: dict[str, Any], data: DataSpec) -> dict[str, Any]:
        """The raw configuration, with the sizes that the data turned out to have.

        Raises ConfigError where this family cannot learn from such data.
        """
        return {**config, **item_size(data.input)}


def item_size(items: InputSpec, prefix: str = "") -> dict[str, int]:
    """The configuration key and value that say what is read: `vocabulary_size` or `features`."""
    if isinstance(items, TokenInput):
        return {f"{prefix}vocabulary_size": items.vocabulary_size}
    assert isinstance(items, RealInput)
    return {f"{prefix}features": items.features}


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
