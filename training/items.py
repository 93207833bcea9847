"""What a family reads, tokens or real vectors, as every such family's configuration says it."""

from __future__ import annotations

from pydantic import Field, model_validator

from statewise.model_spec import CategoricalHead, ModelSpec, RealInput, StateSpec, TokenInput, ValueHead
from statewise.plugins import PluginConfig


class InputConfig(PluginConfig):
    """Base of a configuration in which exactly one of `vocabulary_size` and `features` says what the model reads."""

    vocabulary_size: int | None = Field(default=None, ge=2)
    """Token input: number of token ids. Filled in from the tokenizer."""
    features: int | None = Field(default=None, ge=1)
    """Real-vector input: numbers per item. Filled in from the data."""

    @model_validator(mode="after")
    def _one_kind_of_items(self) -> ItemConfig:
        if (self.vocabulary_size is None) == (self.features is None):
            raise ValueError("give exactly one of vocabulary_size (token input) and features (real-vector input)")
        return self

    @property
    def item_size(self) -> int:
        """Size of an output: logits of all tokens, or the numbers of a vector."""
        return self.vocabulary_size or self.features or 0


class ItemConfig(InputConfig):
    """Base of the configuration of a model that gives the next one of the items that it reads."""

    def model_spec(self, state: tuple[StateSpec, ...], max_positions: int | None = None, **others: object) -> ModelSpec:
        """A model that reads these items, gives the next one, and carries this state; and what else there is of it."""
        size = self.item_size
        if self.vocabulary_size is not None:
            items = {"input": TokenInput(vocabulary_size=size), "head": CategoricalHead(vocabulary_size=size)}
        else:
            items = {"input": RealInput(features=size), "head": ValueHead(features=size)}
        return ModelSpec(**items, state=state, max_positions=max_positions, **others)
