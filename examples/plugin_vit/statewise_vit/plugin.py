"""Plugin `vit`: classifies an image, given as the sequence of its patches."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field, model_validator
from torch.nn import functional as F

from statewise import ConfigError, PluginConfig, SequencePlugin
from statewise.model.spec import LabelsHead, ModelSpec, RealInput
from statewise.plugins import DataSpec
from statewise_vit.module import VisionTransformer


class VisionTransformerConfig(PluginConfig):
    """Configuration of a Vision Transformer."""

    max_positions: int = Field(ge=1)
    """Number of patches in the largest image."""
    hidden_size: int = Field(default=64, ge=1)
    num_layers: int = Field(default=2, ge=1)
    num_heads: int = Field(default=4, ge=1)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    noise: float = Field(default=0.0, ge=0.0)
    """Deviation of the noise on pixels in training."""
    features: int = Field(ge=1)
    """Numbers in a patch. Filled in from the data."""
    labels: tuple[str, ...]
    """Names of the classes. Filled in from the data."""

    @model_validator(mode="after")
    def _heads_fit(self) -> VisionTransformerConfig:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of num_heads {self.num_heads}")
        return self


class VisionTransformerPlugin(SequencePlugin[VisionTransformerConfig]):
    """Transformers over image patches with a class token in front (Dosovitskiy et al. 2021)."""

    name = "vit"
    config_class = VisionTransformerConfig

    def spec(self, config: VisionTransformerConfig) -> ModelSpec:
        """Specification: patches in, one label per image out; no state, because an image is read at once."""
        return ModelSpec(
            input=RealInput(features=config.features),
            head=LabelsHead(names=config.labels),
            max_positions=config.max_positions,
        )

    def build(self, config: VisionTransformerConfig) -> VisionTransformer:
        """The module, freshly initialised."""
        return VisionTransformer(
            features=config.features,
            num_labels=len(config.labels),
            max_positions=config.max_positions,
            hidden_size=config.hidden_size,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            dropout=config.dropout,
            noise=config.noise,
        )

    def loss(
        self, config: VisionTransformerConfig, output: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Cross-entropy in nats per image."""
        return F.cross_entropy(output, targets)

    def for_data(self, config: dict[str, Any], data: DataSpec) -> dict[str, Any]:
        """Fill in the size of a patch and the names of the classes."""
        if not isinstance(data.input, RealInput) or data.labels is None or data.labels_per != "sequence":
            raise ConfigError("data: plugin vit learns from patches (real vectors) with one label for each image")
        return {**config, "features": data.input.features, "labels": list(data.labels)}
