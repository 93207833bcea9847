"""What a family reads and gives, tokens or real vectors, as every such family's configuration says it."""

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
    """Base of a configuration in which exactly one of `vocabulary_size` and `features` says what the model reads."""

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
        """Size of the vocabulary, or numbers of a vector."""
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
    """Base of the configuration of a model that gives the next one of the items that it reads."""

    head: HeadConfig | None = None
    """Real-vector input: what is said of the next vector; `value` where absent. A name stands for its defaults."""

    @model_validator(mode="after")
    def _head_fits(self) -> ItemConfig:
        if self.vocabulary_size is not None and self.head is not None:
            raise ValueError(f"head: {self.head.kind} is for real vectors (data.kind series); leave it out for tokens")
        self.next_item  # noqa: B018 # its own limits
        return self

    @property
    def next_item(self) -> HeadSpec:
        """What the model gives of the next item."""
        if self.features is None:
            return CategoricalHead(vocabulary_size=self.vocabulary_size)
        if isinstance(self.head, MixtureHeadConfig):
            return MixtureHead(features=self.features, **self.head.model_dump())
        return ValueHead(features=self.features)

    def model_spec(self, state: tuple[StateSpec, ...], max_positions: int | None = None, **others: object) -> ModelSpec:
        """A model that reads these items, gives the next one, and carries this state; and what else there is of it."""
        if self.features is None:
            reads = TokenInput(vocabulary_size=self.vocabulary_size)
        else:
            reads = RealInput(features=self.features)
        return ModelSpec(input=reads, head=self.next_item, state=state, max_positions=max_positions, **others)
