"""Description of a model by its plugin: input, state and head."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Dimension = int | Literal["row", "position", "source"]
DType = Literal["float32", "float16", "int64"]

MAX_FULL_FEATURES = 64
"""Most features of a mixture with full covariances, whose parameters grow with the square."""


class Strict(BaseModel):
    """A frozen record that refuses unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StateSpec(Strict):
    """One tensor of a model's state; dimension 0 is always `row`."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.]+$")
    kind: Literal["recurrent", "cache", "memory"] = "recurrent"
    """`recurrent`: replaced at each step; `cache`: appended to in place, along its dimension `position`; `memory`: made
    once of the source, and then read only, with room along `source` for the longest one where it holds its items."""
    dtype: DType = "float32"
    shape: tuple[Dimension, ...]

    @model_validator(mode="after")
    def _shape_fits_kind(self) -> StateSpec:
        shape = list(self.shape)
        if not shape or shape[0] != "row" or "row" in shape[1:]:
            raise ValueError(f"shape of state {self.name!r} must be ['row', ...], got {shape}")
        if shape.count("position") != (self.kind == "cache"):
            raise ValueError(
                f"shape of state {self.name!r} must hold 'position' once where its kind is cache, and else never; "
                f"got {shape} for {self.kind}"
            )
        if self.kind == "cache" and shape.index("position") != 2:
            raise ValueError(f"shape of cache {self.name!r} must be ['row', heads, 'position', ...], got {shape}")
        if shape.count("source") > (self.kind == "memory"):
            raise ValueError(
                f"shape of state {self.name!r} may hold 'source' once where its kind is memory, and else never; "
                f"got {shape} for {self.kind}"
            )
        if any(isinstance(size, int) and size < 1 for size in shape):
            raise ValueError(f"shape of state {self.name!r} has a size below 1: {shape}")
        return self

    def row_shape(self, num_positions: int = 0, num_source: int = 0) -> tuple[int, ...]:
        """Shape of one row, without the row dimension, with room for so many positions and source items."""
        sizes = {"position": num_positions, "source": num_source}
        return tuple(size if isinstance(size, int) else sizes[size] for size in self.shape[1:])


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

    @property
    def output_size(self) -> int:
        """Numbers per output."""
        return self.vocabulary_size


class ValueHead(Strict):
    """A real vector, float32 `[row, features]`: the prediction of the next item, fed back as it is."""

    kind: Literal["value"] = "value"
    features: int = Field(ge=1)

    @property
    def output_size(self) -> int:
        """Numbers per output."""
        return self.features


class MixtureHead(Strict):
    """Parameters of a mixture of Gaussians over the next item, float32 `[row, output_size]` (Bishop 1994).

    One after another: the logits of the components `[components]`, the means `[components, features]`, and the lower
    Cholesky factors of the covariances: of each its diagonal's logarithm `[components, features]`, and where
    `covariance` is full what lies below the diagonal, row by row, `[components, features * (features - 1) / 2]`.
    """

    kind: Literal["mixture"] = "mixture"
    features: int = Field(ge=1)
    components: int = Field(ge=1, le=1024)
    covariance: Literal["diagonal", "full"] = "diagonal"

    @model_validator(mode="after")
    def _factors_are_small(self) -> MixtureHead:
        if self.covariance == "full" and self.features > MAX_FULL_FEATURES:
            raise ValueError(
                f"covariance full takes at most {MAX_FULL_FEATURES} features, got {self.features}; use diagonal"
            )
        return self

    @property
    def output_size(self) -> int:
        """Numbers per output."""
        below = self.features * (self.features - 1) // 2 if self.covariance == "full" else 0
        return self.components * (1 + 2 * self.features + below)


class LabelsHead(Strict):
    """Logits over labels, float32 `[row, labels]` for a whole sequence, or `[row, time, labels]`, one for each item."""

    kind: Literal["labels"] = "labels"
    names: tuple[str, ...] = Field(min_length=2)
    per: Literal["sequence", "item"] = "sequence"

    @property
    def output_size(self) -> int:
        """Numbers per output."""
        return len(self.names)

    @model_validator(mode="after")
    def _names_differ(self) -> LabelsHead:
        if len(set(self.names)) != len(self.names):
            raise ValueError("names of labels repeat")
        return self


class EmbeddingHead(Strict):
    """A vector that stands for a whole sequence, float32 `[row, size]`."""

    kind: Literal["embedding"] = "embedding"
    size: int = Field(ge=1)

    @property
    def output_size(self) -> int:
        """Numbers per output."""
        return self.size


InputSpec = Annotated[TokenInput | RealInput, Field(discriminator="kind")]
HeadSpec = Annotated[
    CategoricalHead | ValueHead | MixtureHead | LabelsHead | EmbeddingHead, Field(discriminator="kind")
]


class ModelSpec(Strict):
    """Description of a model by its plugin: input, state and head.

    A model with state generates: its output is the next item, and is fed back. One without state reads a whole sequence
    at once and gives labels, an embedding or a value.
    """

    input: InputSpec
    head: HeadSpec
    state: tuple[StateSpec, ...] = ()
    max_positions: int | None = Field(default=None, ge=1)
    """Items of the longest sequence; None where there is no such bound (recurrent families)."""
    source: InputSpec | None = None
    """Source from which an encoder-decoder makes its first state; None for all other models."""
    max_source_positions: int | None = Field(default=None, ge=1)
    """Items of the longest source."""
    embedding: EmbeddingHead | None = None
    """The vector that a model which generates can also make of a sequence of its items."""

    @property
    def generates(self) -> bool:
        """Whether the output is the next item, rather than an answer about the whole sequence."""
        return bool(self.state)

    @property
    def prediction(self) -> HeadSpec | None:
        """Head of predictions of whole sequences; None where the model only generates."""
        return self.embedding if self.generates else self.head

    @property
    def has_caches(self) -> bool:
        """Whether the state grows with every item."""
        return any(state.kind == "cache" for state in self.state)

    @property
    def sized_state(self) -> tuple[StateSpec, ...]:
        """The state with the room for a source as a number, which is the same in every row."""
        size = self.max_source_positions
        return tuple(
            state.model_copy(update={"shape": tuple(size if dim == "source" else dim for dim in state.shape)})
            for state in self.state
        )

    @property
    def written_state(self) -> tuple[StateSpec, ...]:
        """State that a step writes: all but the memories."""
        return tuple(state for state in self.state if state.kind != "memory")

    def with_state_dtype(self, dtype: DType) -> ModelSpec:
        """The same model with its real-number state held in another type; integers stay as they are."""
        state = [s if s.dtype == "int64" else s.model_copy(update={"dtype": dtype}) for s in self.state]
        return self.model_copy(update={"state": tuple(state)})

    @model_validator(mode="after")
    def _consistent(self) -> ModelSpec:
        if self.generates:
            self._check_feedback()
        else:
            self._check_one_shot()
        if (self.source is None) != (self.max_source_positions is None):
            raise ValueError("source and max_source_positions go together")
        if self.source is None and any(state.kind == "memory" for state in self.state):
            raise ValueError("a state of kind memory needs a source")
        names = [spec.name for spec in self.state]
        if len(set(names)) != len(names):
            raise ValueError(f"state names repeat: {names}")
        return self

    def _check_feedback(self) -> None:
        pair = (self.input.kind, self.head.kind)
        if pair == ("tokens", "categorical"):
            fits = self.input.vocabulary_size == self.head.vocabulary_size  # type: ignore[union-attr] # kinds checked
        elif pair in {("real", "value"), ("real", "mixture")}:
            fits = self.input.features == self.head.features  # type: ignore[union-attr] # kinds checked
        else:
            raise ValueError(f"a {self.head.kind} head cannot be fed back into a {self.input.kind} input")
        if not fits:
            raise ValueError("the head's size differs from the input's, so an output cannot be fed back")
        if self.max_positions is None and self.has_caches:
            raise ValueError("a state of kind cache needs max_positions")

    def _check_one_shot(self) -> None:
        if self.head.kind in {"categorical", "mixture"}:
            raise ValueError(f"a {self.head.kind} head gives the next item, so the model needs a state")
        if self.source is not None or self.embedding is not None:
            raise ValueError("source and embedding belong to models with a state")
        if self.max_positions is None:
            raise ValueError("a model without state needs max_positions: it reads a whole sequence at once")
