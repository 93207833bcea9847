"""Plugin `markov`: predicts the next token from the last one alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from statewise.errors import ConfigError
from statewise.model.spec import CategoricalHead, ModelSpec, StateSpec, TokenInput
from statewise.plugins import DataSpec, SequencePlugin
from statewise_training.data.chunks import Items
from statewise_training.data.counting import count_pairs
from statewise_training.families.markov.config import MarkovConfig
from statewise_training.families.markov.module import MarkovModule
from statewise_training.families.shared.losses import next_item_loss


class MarkovPlugin(SequencePlugin[MarkovConfig]):
    """First-order Markov chains over tokens."""

    name = "markov"
    config_class = MarkovConfig

    def spec(self, config: MarkovConfig) -> ModelSpec:
        """Specification; state: the last token's id + 1, or 0 before the first token."""
        return ModelSpec(
            input=TokenInput(vocabulary_size=config.vocabulary_size),
            head=CategoricalHead(vocabulary_size=config.vocabulary_size),
            state=(StateSpec(name="last", dtype="int64", shape=("row",)),),
        )

    def build(self, config: MarkovConfig) -> MarkovModule:
        """The step function, initialised with nearly uniform transitions."""
        return MarkovModule(config.vocabulary_size)

    def loss(
        self, config: MarkovConfig, output: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Cross-entropy in nats per token."""
        return next_item_loss(output, targets, mask, head=self.spec(config).head)

    def fit(self, module: torch.nn.Module, config: MarkovConfig, documents: Sequence[Items]) -> bool:
        """Fit by counting: log((count(a, b) + smoothing) / (count(a) + smoothing * vocabulary_size))."""
        if config.fit != "counting":
            return False
        counts = count_pairs(documents, config.vocabulary_size)
        with torch.no_grad():
            module.table.copy_(torch.from_numpy(counts.log_probability_table(config.smoothing)))
        return True

    def for_data(self, config: dict[str, Any], data: DataSpec) -> dict[str, Any]:
        """Fill in the vocabulary's size. Raises ConfigError for real vectors."""
        if not isinstance(data.input, TokenInput):
            raise ConfigError(
                "plugin: markov reads tokens, and data.kind series holds real vectors; use autoregressive with window 1"
            )
        return super().for_data(config, data)
