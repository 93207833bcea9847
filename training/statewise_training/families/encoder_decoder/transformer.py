"""The Transformer of Vaswani et al. 2017: an encoder, and a decoder with cross-attention to the encoded source."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from statewise_training.families.encoder_decoder.caches import SourceCaches
from statewise_training.families.shared.masks import pad_source
from statewise_training.families.shared.mixture import output_layer
from statewise_training.families.transformer.module import Layer, TransformerTrunk, initialize, norm
from statewise_training.families.transformer.whole import WholeRows

if TYPE_CHECKING:
    from statewise_training.families.encoder_decoder.config import TransformerEncoderDecoderConfig

State = tuple[Tensor, ...]


class TransformerEncoderDecoder(nn.Module):
    """Encoder, decoder, head. State: see `SourceCaches`."""

    def __init__(self, config: TransformerEncoderDecoderConfig) -> None:
        super().__init__()
        self.max_source_positions = config.max_source_positions
        self.encoder = TransformerTrunk(config.encoder, Layer)
        self.decoder = TransformerTrunk(config, DecoderLayer)
        self.output = output_layer(config.hidden_size, config.next_item, bias=config.output_bias)
        self.encoder.initialize()
        self.decoder.initialize()
        initialize(self.output)
        if config.shares_embedding:
            self.encoder.embedding = self.decoder.embedding
        if config.tied_embeddings:
            self.output.weight = self.decoder.embedding.weight

    def encode(self, source: Tensor, source_lengths: Tensor) -> State:
        """First state without the caches: position 0, each layer's keys and values of the source, its length."""
        places = torch.arange(source.shape[1], device=source.device)[None]
        encoded = self.encoder.run(source, places, WholeRows(source_lengths, source.shape[1]))
        parts = [part for layer in self.decoder.layers for part in layer.memory(encoded)]
        memory = [pad_source(part, self.max_source_positions, 2) for part in parts]
        return (torch.zeros_like(source_lengths), *memory, source_lengths)

    def forward(self, items: Tensor, lengths: Tensor, state: State) -> tuple[Tensor, State]:
        """Hidden vectors `[row, time, hidden_size]`, normalised for the head, and the state with the new items."""
        caches = SourceCaches(state, lengths)
        hidden = self.decoder.run(items, caches.places(items.shape[1]), caches)
        return hidden, caches.new_state()

    def head(self, hidden: Tensor) -> Tensor:
        """Outputs for the next item, `[..., output_size]`."""
        return self.output(hidden)


class DecoderLayer(Layer):
    """Self-attention, attention to the source, feed-forward."""

    def __init__(self, config: TransformerEncoderDecoderConfig) -> None:
        super().__init__(config)
        width, head = config.hidden_size, config.head_width
        self.source_norm = norm(config)
        self.source_query = nn.Linear(width, config.num_heads * head, bias=config.bias)
        self.source_key = nn.Linear(width, config.key_value_heads * head, bias=config.bias)
        self.source_value = nn.Linear(width, config.key_value_heads * head, bias=config.bias)
        self.source_output = nn.Linear(config.num_heads * head, width, bias=config.bias)

    @property
    def branch_ends(self) -> tuple[nn.Linear, ...]:
        """The last linear layer of each residual branch."""
        return self.attention_output, self.source_output, self.down

    def memory(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the encoded source, `[row, kv_head, source, head_size]` each."""
        key, value = (
            linear(encoded).unflatten(2, (-1, self.head_size)).transpose(1, 2)
            for linear in (self.source_key, self.source_value)
        )
        return key, value

    def forward(self, hidden: Tensor, rotation: Tensor | None, caches: SourceCaches) -> Tensor:
        """Hidden vectors `[row, time, hidden_size]`."""
        hidden = self._add(self.attention_norm, hidden, lambda inputs: self._attend(inputs, rotation, caches))
        hidden = self._add(self.source_norm, hidden, lambda inputs: self._attend_to_source(inputs, caches))
        return self._add(self.feed_forward_norm, hidden, self._feed_forward)

    def _attend_to_source(self, inputs: Tensor, caches: SourceCaches) -> Tensor:
        query = self.source_query(inputs).unflatten(2, (-1, self.head_size))
        attended = caches.attend_to_source(query, self.dropout.p if self.training else 0.0)
        return self.source_output(attended.flatten(2))
