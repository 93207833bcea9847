"""Plugin `aae`: encodes a string to a vector distributed like a Gaussian, and decodes the vector to a string."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import Field
from torch.nn import functional as F

from statewise import PluginConfig, SequencePlugin
from statewise.model.spec import CategoricalHead, EmbeddingHead, ModelSpec, RealInput, StateSpec, TokenInput
from statewise.plugins import Batch
from statewise_aae.module import AdversarialAutoencoder


class AdversarialAutoencoderConfig(PluginConfig):
    """Configuration of an adversarial autoencoder."""

    vocabulary_size: int = Field(ge=2)
    """Number of token ids. Filled in from the tokenizer."""
    latent_size: int = Field(default=32, ge=1)
    """Numbers in the vector."""
    hidden_size: int = Field(default=256, ge=1)
    """Width of the encoder's LSTM and of the decoder's."""
    embedding_size: int = Field(default=64, ge=1)
    discriminator_size: int = Field(default=128, ge=1)
    """Width of the discriminator's two hidden layers."""
    adversarial_weight: float = Field(default=0.1, ge=0.0)
    """Weight of the encoder's adversarial loss, relative to a nat of reconstruction."""
    noise: float = Field(default=0.1, ge=0.0)
    """Deviation of the noise on vectors in training, so that near vectors decode to similar strings."""


class AdversarialAutoencoderPlugin(SequencePlugin[AdversarialAutoencoderConfig]):
    """Adversarial autoencoders (Makhzani et al. 2016) with recurrent encoder and decoder."""

    name = "aae"
    config_class = AdversarialAutoencoderConfig

    def spec(self, config: AdversarialAutoencoderConfig) -> ModelSpec:
        """Specification: a decoder of characters whose source is a vector, and an embedding that gives this vector."""
        return ModelSpec(
            input=TokenInput(vocabulary_size=config.vocabulary_size),
            head=CategoricalHead(vocabulary_size=config.vocabulary_size),
            state=tuple(StateSpec(name=name, shape=("row", config.hidden_size)) for name in ("hidden", "cell")),
            source=RealInput(features=config.latent_size),
            max_source_positions=1,
            embedding=EmbeddingHead(size=config.latent_size),
        )

    def build(self, config: AdversarialAutoencoderConfig) -> AdversarialAutoencoder:
        """The module, freshly initialised."""
        return AdversarialAutoencoder(
            vocabulary_size=config.vocabulary_size,
            latent_size=config.latent_size,
            hidden_size=config.hidden_size,
            embedding_size=config.embedding_size,
            discriminator_size=config.discriminator_size,
        )

    def loss(
        self, config: AdversarialAutoencoderConfig, output: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Cross-entropy of the reconstruction, in nats per character."""
        return F.cross_entropy(output[mask], targets[mask])

    def training_loss(
        self,
        module: AdversarialAutoencoder,
        config: AdversarialAutoencoderConfig,
        batch: Batch,
        run: Callable[[Batch], torch.Tensor],
    ) -> torch.Tensor:
        """Loss of the reconstruction from noisy vectors, and of the game between encoder and discriminator.

        Both players' losses are one sum for one optimiser: each sees the other's part as a constant. Reversing the
        discriminator's gradient would need no constants, but it vanishes as soon as the discriminator is sure.
        """
        latent = module.embed(batch.items, batch.lengths)
        noisy = latent + config.noise * torch.randn_like(latent)
        reconstruction = self.loss(config, module.decode(noisy, batch.items), batch.targets, batch.mask)
        return reconstruction + config.adversarial_weight * module.fooling_loss(latent) + module.telling_loss(latent)
