"""Plugin `transformer`: a decoder-only Transformer over key/value caches."""

from __future__ import annotations

import torch

from statewise.model.spec import ModelSpec, StateSpec
from statewise.plugins import SequencePlugin
from statewise_training.families.shared.losses import next_item_loss
from statewise_training.families.transformer.config import TransformerConfig
from statewise_training.families.transformer.module import TransformerModule


class TransformerPlugin(SequencePlugin[TransformerConfig]):
    """Decoder-only Transformers (Vaswani et al. 2017), from GPT-2's to Llama's shape."""

    name = "transformer"
    config_class = TransformerConfig
    mixes = True

    def spec(self, config: TransformerConfig) -> ModelSpec:
        """Specification; state: the number of items so far, and each layer's keys and values."""
        shape = ("row", config.key_value_heads, "position", config.head_width)
        caches = tuple(
            StateSpec(name=f"{part}.{layer}", kind="cache", shape=shape)
            for layer in range(config.num_layers)
            for part in ("key", "value")
        )
        position = StateSpec(name="position", dtype="int64", shape=("row",))
        return config.model_spec((position, *caches), config.max_positions)

    def inspects(self, config: TransformerConfig) -> bool:
        """Return True: the module shows its attention weights."""
        return True

    def build(self, config: TransformerConfig) -> TransformerModule:
        """The step function, freshly initialised."""
        return TransformerModule(config)

    def loss(
        self, config: TransformerConfig, output: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Cross-entropy in nats per token; for real vectors, squared error per element or nats per vector."""
        return next_item_loss(output, targets, mask, head=config.next_item)
