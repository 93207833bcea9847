"""Methods of a plugin's module, as protocols: the step that every module has, and the methods that some have too.

A module is a `torch.nn.Module` besides. Tensors are written `[row, ...]`; `items` are int64 `[row, time]` (tokens) or
float32 `[row, time, features]` (real vectors), right-padded, and `lengths`, int64 `[row]`, counts the real items of
each row. This module imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar, cast

from statewise.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    State = tuple[Tensor, ...]
    """Tensors in the order of `ModelSpec.state`; zeros start a sequence."""


class StepModule(Protocol):
    """The step function over state, used unchanged by training, by the reference decoder and by export."""

    def __call__(self, items: Tensor, lengths: Tensor, state: State) -> tuple[Tensor, State]:
        """Return hidden vectors and the new state; a plugin's module defines it as `forward`.

        A row with length 0 keeps its state. The hidden vectors are `[row, time, width]`, undefined beyond a row's
        length. A model without state (an encoder) gets a whole sequence and `()` as its state; where its head gives one
        answer per sequence, they are `[row, width]`.
        """

    def head(self, hidden: Tensor) -> Tensor:
        """Return outputs of hidden vectors, float32 `[..., output_size]`, as the head of the `ModelSpec` says."""


class MixedStep(StepModule, Protocol):
    """A step that also reads its weights once for two kinds of rows; for plugins with `mixes = True`."""

    def forward_mixed(
        self, items: Tensor, state: State, chunk: Tensor, chunk_state: State
    ) -> tuple[Tensor, State, State]:
        """Return hidden vectors, the new state and the chunk's new state: the same numbers as two calls of `forward`.

        items `[row, 1, ...]` is one item of each of some rows, chunk `[1, time, ...]` a part of the prompt of one row
        more; the hidden vectors `[row + 1, width]` are of each row's item and the chunk's last one.
        """


class Encodes(Protocol):
    """The source's reader in an encoder-decoder; for a `ModelSpec` with `source`."""

    def encode(self, source: Tensor, source_lengths: Tensor) -> State:
        """Return the first state: all its tensors but the caches, in their order.

        source `[row, source]` or `[row, source, features]`. Memories have `max_source_positions` items along `source`.
        """


class Embeds(Protocol):
    """The maker of a vector per sequence in a model that generates; for a `ModelSpec` with `embedding`."""

    def embed(self, items: Tensor, lengths: Tensor) -> Tensor:
        """Return the embeddings of whole sequences, `[row, size]`."""


class Inspects(Protocol):
    """The view into a module's attention or gates; for configurations that the plugin `inspects`."""

    def inspect(self, items: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """Return attention weights and activations of whole sequences by name, from the first state on.

        Names are of the form `kind.layer`: `attention.0`, `forget_gate.1`. Attention weights are
        `[row, head, query, key]`, 0 where a query may not see a key; activations are `[row, time, unit]`. Both are
        undefined beyond a row's length.
        """


ModuleT = TypeVar("ModuleT")


def require(module: object, protocol: type[ModuleT]) -> ModuleT:
    """Return the module as one of that protocol. Raises ConfigError for a method that it lacks."""
    missing = missing_methods(module, protocol)
    if missing:
        raise ConfigError(
            f"module {type(module).__name__} has no method `{missing[0]}`; see statewise.modules.{protocol.__name__}"
        )
    return cast("ModuleT", module)


def missing_methods(module: object, protocol: type[object]) -> list[str]:
    """Names of the protocol's public methods that a module lacks.

    A method may be a layer, as in `self.head = nn.Linear(...)`. PyTorch finds layers by `__getattr__`, at which
    `isinstance` with a runtime protocol does not look from Python 3.12 on.
    """
    names = [name for base in protocol.__mro__ for name in vars(base) if not name.startswith("_")]
    return [name for name in dict.fromkeys(names) if not callable(getattr(module, name, None))]
