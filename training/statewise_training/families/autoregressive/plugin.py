"""Plugin `autoregressive`: predicts the next item from the last `window` items, AR(window)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from statewise.errors import ConfigError
from statewise.model.spec import ModelSpec, StateSpec
from statewise.plugins import SequencePlugin
from statewise_training.data.chunks import Items
from statewise_training.families.autoregressive.config import AutoregressiveConfig
from statewise_training.families.autoregressive.least_squares import least_squares, num_equations
from statewise_training.families.autoregressive.module import AutoregressiveModule
from statewise_training.families.shared.losses import next_item_loss


class AutoregressivePlugin(SequencePlugin[AutoregressiveConfig]):
    """A fixed window of items, linear (the classical AR model; Box and Jenkins 1970) or through hidden layers."""

    name = "autoregressive"
    config_class = AutoregressiveConfig

    def spec(self, config: AutoregressiveConfig) -> ModelSpec:
        """The window of the last items, the oldest first."""
        if config.features is not None:
            window = StateSpec(name="window", shape=("row", config.window, config.features))
        else:
            window = StateSpec(name="window", dtype="int64", shape=("row", config.window))
        return config.model_spec((window,))

    def build(self, config: AutoregressiveConfig) -> AutoregressiveModule:
        """The step function, initialised as torch.nn does."""
        return AutoregressiveModule(
            window=config.window,
            vocabulary_size=config.vocabulary_size,
            features=config.features,
            embedding_size=config.embedding_size or 32,
            hidden_sizes=config.hidden_sizes,
            activation=config.activation,
            dropout=config.dropout,
            head=config.next_item,
        )

    def loss(
        self, config: AutoregressiveConfig, output: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Cross-entropy in nats per token; for real vectors, squared error per element or nats per vector."""
        return next_item_loss(output, targets, mask, head=config.next_item)

    def fit(self, module: torch.nn.Module, config: AutoregressiveConfig, documents: Sequence[Items]) -> bool:
        """Fit by conditional least squares, over the items that a whole window precedes."""
        if config.fit != "least_squares":
            return False
        assert config.features is not None
        num_unknowns = config.window * config.features + 1
        if (found := num_equations(documents, config.window)) < num_unknowns:
            raise ConfigError(
                f"model.window: {config.window} gives least squares {num_unknowns:,} unknowns per feature, but the "
                f"training part has {found:,} items with a whole window before them; lower it, or add data"
            )
        solution = least_squares(documents, config.window)
        with torch.no_grad():
            for parameter, value in zip((module.mean, module.output.weight, module.output.bias), solution, strict=True):
                parameter.copy_(torch.from_numpy(value))
        return True
