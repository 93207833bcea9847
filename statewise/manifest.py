"""What a bundle says of itself: the contract between export and the server.

The server obeys this description and nothing else; it never asks which family a model belongs to.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

SCHEMA_VERSION = 1

Dimension = int | Literal["row", "position"]
DType = Literal["float32", "float16", "int64"]


def _inside_bundle(name: str) -> str:
    path = PurePosixPath(name)
    if path.name != name or name in {"", ".", ".."} or "\\" in name:
        raise ValueError(f"{name!r} is not a plain file name; every file lies in the bundle's own folder")
    return name


FileName = Annotated[str, AfterValidator(_inside_bundle)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]


class Strict(BaseModel):
    """A frozen record that refuses unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StateSpec(Strict):
    """One tensor of a model's state; dimension 0 is always `row`."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.]+$")
    kind: Literal["recurrent", "cache"] = "recurrent"
    """`recurrent`: replaced at each step; `cache`: appended to in place, along its dimension `position`."""
    dtype: DType = "float32"
    shape: tuple[Dimension, ...]

    @model_validator(mode="after")
    def _rows_first(self) -> StateSpec:
        if not self.shape or self.shape[0] != "row" or "row" in self.shape[1:]:
            raise ValueError(f"shape of state {self.name!r} must be ['row', ...], got {list(self.shape)}")
        if self.shape.count("position") != (self.kind == "cache"):
            raise ValueError(
                f"shape of state {self.name!r} must hold 'position' once where its kind is cache, and else never; "
                f"got {list(self.shape)} for {self.kind}"
            )
        if self.kind == "cache" and self.shape.index("position") != 2:
            raise ValueError(
                f"shape of cache {self.name!r} must be ['row', heads, 'position', ...], got {list(self.shape)}"
            )
        if any(isinstance(size, int) and size < 1 for size in self.shape):
            raise ValueError(f"shape of state {self.name!r} has a size below 1: {list(self.shape)}")
        return self

    def row_shape(self, num_positions: int = 0) -> tuple[int, ...]:
        """Shape of one row, without the row dimension, with room for so many positions."""
        return tuple(size if isinstance(size, int) else num_positions for size in self.shape[1:])


class TokenInput(Strict):
    """The model reads token ids, int64 `[row, time]`."""

    kind: Literal["tokens"] = "tokens"
    vocabulary_size: int = Field(ge=2)


class RealInput(Strict):
    """The model reads real vectors, float32 `[row, time, features]`."""

    kind: Literal["real"] = "real"
    features: int = Field(ge=1)


class CategoricalHead(Strict):
    """Logits over the vocabulary, float32 `[row, vocabulary_size]`; the next item is drawn from them."""

    kind: Literal["categorical"] = "categorical"
    vocabulary_size: int = Field(ge=2)


class ValueHead(Strict):
    """A real vector, float32 `[row, features]`: the prediction of the next item, fed back as it is."""

    kind: Literal["value"] = "value"
    features: int = Field(ge=1)


InputSpec = Annotated[TokenInput | RealInput, Field(discriminator="kind")]
HeadSpec = Annotated[CategoricalHead | ValueHead, Field(discriminator="kind")]


class ModelSpec(Strict):
    """What a plugin declares of a model: what it reads, what it carries, what it gives."""

    input: InputSpec
    head: HeadSpec
    state: tuple[StateSpec, ...] = Field(min_length=1)
    max_positions: int | None = Field(default=None, ge=1)
    """Items that fit into the state; None where the state does not grow (recurrent families)."""

    @property
    def has_caches(self) -> bool:
        """Whether the state grows with every item."""
        return any(state.kind == "cache" for state in self.state)

    def with_state_dtype(self, dtype: DType) -> ModelSpec:
        """The same model with its real-number state held in another type; integers stay as they are."""
        state = [s if s.dtype == "int64" else s.model_copy(update={"dtype": dtype}) for s in self.state]
        return self.model_copy(update={"state": tuple(state)})

    @model_validator(mode="after")
    def _output_can_be_fed_back(self) -> ModelSpec:
        pair = (self.input.kind, self.head.kind)
        if pair == ("tokens", "categorical"):
            fits = self.input.vocabulary_size == self.head.vocabulary_size  # type: ignore[union-attr] # kinds checked
        elif pair == ("real", "value"):
            fits = self.input.features == self.head.features  # type: ignore[union-attr] # kinds checked
        else:
            raise ValueError(f"a {self.head.kind} head cannot be fed back into a {self.input.kind} input")
        if not fits:
            raise ValueError("the head's size differs from the input's, so an output cannot be fed back")
        if self.max_positions is None and self.has_caches:
            raise ValueError("a state of kind cache needs max_positions")
        names = [spec.name for spec in self.state]
        if len(set(names)) != len(names):
            raise ValueError(f"state names repeat: {names}")
        return self


class SpecialTokens(Strict):
    """Ids with a meaning of their own; None where the vocabulary has no such token."""

    start: int | None = Field(default=None, ge=0)
    """Put before every prompt, so that an empty prompt has something to start from."""
    end: int | None = Field(default=None, ge=0)
    """Ends a generation with finish reason STOP."""


class Variant(Strict):
    """One lowering of the model to ONNX, for a device and a precision."""

    device: Literal["cpu", "cuda"]
    precision: Literal["float32", "float16", "int8", "int4"]
    step: FileName
    """One run: `time` new items of every row, one output item per row (prefill, and decode)."""
    decode: FileName | None = None
    """One run: K items for every row, the state looping inside the graph."""
    mixed: FileName | None = None
    """One run: one item of each of the first rows, and a chunk of a prompt for the row behind them."""
    data: tuple[FileName, ...] = ()
    """External weights of the graphs; empty where the weights lie inside them."""
    state_dtype: Literal["float32", "float16"] = "float32"
    """What the real-number state is held in, whatever the model's own description says."""
    ragged_prefill: bool = True
    """Whether one run takes several new items of several rows; else each such row has a run of its own."""
    certificate: FileName

    @property
    def graphs(self) -> tuple[str, ...]:
        """Names of the ONNX files."""
        return tuple(name for name in (self.step, self.decode, self.mixed) if name)


class Manifest(Strict):
    """`manifest.json`: everything the server must know of a bundle, and the hash of every other file."""

    schema_version: Literal[1] = 1
    name: ModelName
    version: int = Field(ge=1)
    plugin: str
    plugin_config: dict[str, Any]
    """For the record (`statewise verify` rebuilds the module from it); the server does not read it."""
    model: ModelSpec
    special_tokens: SpecialTokens = SpecialTokens()
    tokenizer: FileName | None = None
    variants: dict[str, Variant] = Field(min_length=1)
    created_with: dict[str, str]
    """Versions of the libraries that made the bundle."""
    files: dict[FileName, Sha256]
    """sha256 of every file in the folder but this one."""

    @model_validator(mode="after")
    def _files_are_listed(self) -> Manifest:
        wanted = {self.tokenizer} if self.tokenizer else set()
        for variant in self.variants.values():
            wanted |= {*variant.graphs, *variant.data, variant.certificate}
        missing = sorted(wanted - self.files.keys())
        if missing:
            raise ValueError(f"files named but not listed with a hash: {', '.join(missing)}")
        return self
