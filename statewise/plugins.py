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
from statewise.modules import Embeds, Encodes, Inspects, MixedStep, StepModule, missing_methods

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
    """Properties of the data of a training run."""

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
    """Batch of one training step; rows are right-padded."""

    @property
    def items(self) -> torch.Tensor:
        """Items that the model reads, `[row, time]` or `[row, time, features]`."""

    @property
    def targets(self) -> torch.Tensor:
        """Items that it is to give, one step later; or labels `[row]` or `[row, time]`."""

    @property
    def mask(self) -> torch.Tensor:
        """Mask of the items in the loss, bool `[row, time]`: the real ones but for special tokens around a text."""

    @property
    def lengths(self) -> torch.Tensor:
        """Number of real items of each row, int64 `[row]`."""

    @property
    def source(self) -> torch.Tensor | None:
        """Sources, `[row, source]` or `[row, source, features]`, where the data is pairs."""

    @property
    def source_lengths(self) -> torch.Tensor | None:
        """Number of real items of each source, int64 `[row]`."""


class SequencePlugin(ABC, Generic[ConfigT]):
    """One model family.

    The module that `build` returns is a `torch.nn.Module` with the methods of `statewise.modules.StepModule`: `forward`
    and `head`, used unchanged by training (first state, whole sequence), by the reference decoder and by export. A
    plugin promises further methods by setting one of these:

        ModelSpec.source          `encode` (Encodes)
        ModelSpec.embedding       `embed` (Embeds)
        mixes                     `forward_mixed` (MixedStep)
        inspects(config)          `inspect` (Inspects)

    The protocols in `statewise.modules` give their arguments and shapes; `build_module` refuses a module that lacks
    one.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[PluginConfig]]
    mixes: ClassVar[bool] = False
    """Whether the module is a `MixedStep`: worth while where a step is bound by reading the weights."""

    @abstractmethod
    def spec(self, config: ConfigT) -> ModelSpec:
        """Describe a model of this configuration: input, state and head."""

    @abstractmethod
    def build(self, config: ConfigT) -> torch.nn.Module:
        """The step function, with freshly initialised weights."""

    def inspects(self, config: ConfigT) -> bool:
        """Whether the module of this configuration `Inspects`, for `statewise export --inspect`."""
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
        """Return the loss of a training step; `run` gives the module's outputs for a batch, from its first state.

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


def build_module(plugin: SequencePlugin[Any], config: PluginConfig) -> torch.nn.Module:
    """Build the module of a configuration, with freshly initialised weights.

    Raises ConfigError for a method that the plugin promises and the module lacks.
    """
    module, spec = plugin.build(config), plugin.spec(config)
    name = type(module).__name__
    promises = (
        (StepModule, "every module has it", True),
        (Encodes, "its ModelSpec has a source", spec.source is not None),
        (Embeds, "its ModelSpec has an embedding", spec.embedding is not None),
        (MixedStep, "it says mixes = True", plugin.mixes),
        (Inspects, "its inspects(config) is True", plugin.inspects(config)),
    )
    for protocol, reason, is_promised in promises:
        missing = missing_methods(module, protocol) if is_promised else []
        if missing:
            raise ConfigError(
                f"plugin {plugin.name!r}: its module {name} has no method `{missing[0]}`, but {reason}; "
                f"see statewise.modules.{protocol.__name__}"
            )
    return module
