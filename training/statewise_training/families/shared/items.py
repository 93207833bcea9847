"""Inputs and outputs of a family, tokens or real vectors: the base of the families' configurations."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from statewise.model.spec import (
    CategoricalHead,
    HeadSpec,
    MixtureHead,
    ModelSpec,
    RealInput,
    StateSpec,
    TokenInput,
    ValueHead,
)
from statewise.plugins import PluginConfig


class InputConfig(PluginConfig):
    """Base of a configuration with exactly one of `vocabulary_size` and `features`, for the model's input."""

    vocabulary_size: int | None = Field(default=None, ge=2)
    """Token input: number of token ids. Filled in from the tokenizer."""
    features: int | None = Field(default=None, ge=1)
    """Real-vector input: numbers per item. Filled in from the data."""

    @model_validator(mode="after")
    def _one_kind_of_items(self) -> InputConfig:
        if (self.vocabulary_size is None) == (self.features is None):
            raise ValueError("give exactly one of vocabulary_size (token input) and features (real-vector input)")
        return self

    @property
    def item_size(self) -> int:
        """Vocabulary size, or numbers per vector."""
        return self.vocabulary_size or self.features or 0


class ValueHeadConfig(PluginConfig):
    """The next vector itself, fitted by squared error."""

    kind: Literal["value"] = "value"


class MixtureHeadConfig(PluginConfig):
    """A mixture of Gaussians over the next vector (Bishop 1994), fitted by likelihood."""

    kind: Literal["mixture"] = "mixture"
    components: int = Field(default=5, ge=1, le=1024)
    covariance: Literal["diagonal", "full"] = "diagonal"
    """Whether features vary together inside a component."""


def _by_name(head: Any) -> Any:
    return {"kind": head} if isinstance(head, str) else head


HeadConfig = Annotated[
    Annotated[ValueHeadConfig | MixtureHeadConfig, Field(discriminator="kind")], BeforeValidator(_by_name)
]


class ItemConfig(InputConfig):
    """Base of the configuration of a model that predicts the next of its input items."""

    head: HeadConfig | None = None
    """Real-vector input: the head for the next vector; `value` where absent. A name alone takes its defaults."""

    @model_validator(mode="after")
    def _head_fits(self) -> ItemConfig:
        if self.vocabulary_size is not None and self.head is not None:
            raise ValueError(f"head: {self.head.kind} is for real vectors (data.kind series); leave it out for tokens")
        self.next_item  # noqa: B018 # its own limits
        return self

    @property
    def next_item(self) -> HeadSpec:
        """Head for the next item."""
        if self.features is None:
            return CategoricalHead(vocabulary_size=self.vocabulary_size)
        if isinstance(self.head, MixtureHeadConfig):
            return MixtureHead(features=self.features, **self.head.model_dump())
        return ValueHead(features=self.features)

    def model_spec(self, state: tuple[StateSpec, ...], max_positions: int | None = None, **others: object) -> ModelSpec:
        """Return the specification: these items, a head for the next one, this state, and `others`."""
        if self.features is None:
            reads = TokenInput(vocabulary_size=self.vocabulary_size)
        else:
            reads = RealInput(features=self.features)
        return ModelSpec(input=reads, head=self.next_item, state=state, max_positions=max_positions, **others)
