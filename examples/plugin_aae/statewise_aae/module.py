"""The adversarial autoencoder as a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from statewise.model.spec import CategoricalHead
from statewise_training.families.recurrent.module import RecurrentModule

State = tuple[Tensor, ...]


class AdversarialAutoencoder(nn.Module):
    """Encoder LSTM to a latent vector, decoder LSTM back to the string, and a discriminator for training alone.

    The LSTMs are Statewise's own building block: rows of different lengths need ONNX's operator, which torch.onnx
    does not emit with lengths. The discriminator is in no exported graph: `forward`, `encode`, `embed` do not call it.
    """

    def __init__(
        self, *, vocabulary_size: int, latent_size: int, hidden_size: int, embedding_size: int, discriminator_size: int
    ) -> None:
        super().__init__()
        self.encoder = _lstm(vocabulary_size, embedding_size, hidden_size)
        self.encoder.output = nn.Linear(hidden_size, latent_size)
        self.start = nn.Linear(latent_size, 2 * hidden_size)
        self.decoder = _lstm(vocabulary_size, embedding_size, hidden_size)
        self.discriminator = nn.Sequential(
            nn.Linear(latent_size, discriminator_size),
            nn.LeakyReLU(0.2),
            nn.Linear(discriminator_size, discriminator_size),
            nn.LeakyReLU(0.2),
            nn.Linear(discriminator_size, 1),
        )

    def embed(self, items: Tensor, lengths: Tensor) -> Tensor:
        """Latent vectors `[row, latent_size]` of strings `[row, time]`."""
        zeros = torch.zeros(items.shape[0], self.encoder.rnn.hidden_size, device=items.device)
        _, (hidden, _) = self.encoder(items, lengths, (zeros, zeros))
        return self.encoder.head(hidden)

    def encode(self, source: Tensor, source_lengths: Tensor) -> State:
        """First state of the decoder, hidden and cell vector, from latent vectors `[row, 1, latent_size]`."""
        return self.start(source[:, 0]).tanh().chunk(2, dim=1)

    def forward(self, items: Tensor, lengths: Tensor, state: State) -> tuple[Tensor, State]:
        """Hidden vectors `[row, time, hidden_size]` of the decoder, and its state."""
        return self.decoder(items, lengths, state)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of the next character."""
        return self.decoder.head(hidden)

    def decode(self, latent: Tensor, items: Tensor) -> Tensor:
        """Logits `[row, time, vocabulary_size]` of strings decoded from vectors `[row, latent_size]`."""
        rows, time = items.shape
        state = self.encode(latent[:, None], torch.ones(rows, dtype=torch.int64))
        hidden, _ = self(items, torch.full((rows,), time), state)
        return self.head(hidden)

    def telling_loss(self, latent: Tensor) -> Tensor:
        """Discriminator's loss: nats for telling draws from the prior, N(0, 1), from the encoder's vectors."""
        drawn, made = self.discriminator(torch.randn_like(latent)), self.discriminator(latent.detach())
        return (F.softplus(-drawn) + F.softplus(made)).mean()

    def fooling_loss(self, latent: Tensor) -> Tensor:
        """Encoder's adversarial loss: nats of the discriminator for taking its vectors as draws from the prior."""
        as_it_is = {name: weight.detach() for name, weight in self.discriminator.named_parameters()}
        return F.softplus(-functional_call(self.discriminator, as_it_is, (latent,))).mean()


def _lstm(vocabulary_size: int, embedding_size: int, hidden_size: int) -> RecurrentModule:
    return RecurrentModule(
        "lstm",
        vocabulary_size=vocabulary_size,
        input_size=embedding_size,
        hidden_size=hidden_size,
        num_layers=1,
        dropout=0.0,
        tied_embeddings=False,
        head=CategoricalHead(vocabulary_size=vocabulary_size),
    )
