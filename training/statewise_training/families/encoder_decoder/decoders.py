"""Recurrent decoders: without attention, with Luong's or with Bahdanau's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from statewise_training.families.encoder_decoder.cells import over_time, step_stack
from statewise_training.families.recurrent.config import Cell
from statewise_training.families.recurrent.module import RecurrentModule
from statewise_training.families.shared.masks import pad_source, real_items

if TYPE_CHECKING:
    from statewise_training.families.encoder_decoder.config import RecurrentEncoderDecoderConfig

State = tuple[Tensor, ...]


class Decoder(RecurrentModule):
    """Recurrent decoder without attention: sees the source only through the encoder's last state."""

    reads_context = False
    """Whether each step reads the context vector beside its item."""

    def __init__(self, cell: Cell, config: RecurrentEncoderDecoderConfig) -> None:
        super().__init__(
            cell,
            vocabulary_size=config.vocabulary_size,
            input_size=config.features or config.embedding_width,
            context_size=config.hidden_size if self.reads_context else 0,
            hidden_size=config.hidden_size,
            num_layers=config.num_layers,
            dropout=config.dropout,
            tied_embeddings=config.tied_embeddings,
            head=config.next_item,
            dropout_kind=config.dropout_kind,
        )
        self.max_source_positions = config.max_source_positions

    def memory(self, encoded: Tensor, source_lengths: Tensor) -> State:
        """Return the attention's memory, from the encoded source `[row, source, hidden_size]`."""
        return ()


class LuongDecoder(Decoder):
    """Attends with each new hidden vector h: score(h, s) = h W s (Luong et al. 2015, "general", equations 5 to 8).

    Memory: the encoded source. The context is not fed to the next step, so all steps of a chunk run at once.
    """

    def __init__(self, cell: Cell, config: RecurrentEncoderDecoderConfig) -> None:
        super().__init__(cell, config)
        size = config.hidden_size
        self.query = nn.Linear(size, size, bias=False)
        self.combine = nn.Linear(2 * size, size, bias=False)

    def memory(self, encoded: Tensor, source_lengths: Tensor) -> State:
        """The encoded source, padded, and its length."""
        return pad_source(encoded, self.max_source_positions, 1), source_lengths

    def forward(self, items: Tensor, lengths: Tensor, state: State) -> tuple[Tensor, State]:
        """Attentional vectors `[row, time, hidden_size]`, tanh(W [context; h]), and the state."""
        *layers, memory, source_lengths = state
        hidden, new_layers = super().forward(items, lengths, tuple(layers))
        scores = self.query(hidden) @ memory.transpose(1, 2)
        context = _weights(scores, source_lengths) @ memory
        attentional = torch.tanh(self.combine(torch.cat([context, hidden], 2)))
        return self.dropout(attentional), (*new_layers, memory, source_lengths)


class BahdanauDecoder(Decoder):
    """Attends with the hidden vector before each step: score(h, s) = v tanh(W h + U s) (Bahdanau et al. 2015, A.1.2).

    Each step reads the context beside its item, so a chunk's steps run one after another. Memory: U s, and the
    encoded source itself. The head reads tanh(W [context; h]), as in Luong's, in place of the paper's maxout layer.
    """

    reads_context = True

    def __init__(self, cell: Cell, config: RecurrentEncoderDecoderConfig) -> None:
        super().__init__(cell, config)
        size = config.hidden_size
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size, bias=False)
        self.score = nn.Linear(size, 1, bias=False)
        self.combine = nn.Linear(2 * size, size, bias=False)

    def memory(self, encoded: Tensor, source_lengths: Tensor) -> State:
        """The keys and the encoded source, padded, and its length."""
        parts = (pad_source(part, self.max_source_positions, 1) for part in (self.key(encoded), encoded))
        return (*parts, source_lengths)

    def forward(self, items: Tensor, lengths: Tensor, state: State) -> tuple[Tensor, State]:
        """Attentional vectors `[row, time, hidden_size]`, and the state."""
        *layers, keys, memory, source_lengths = state
        inputs = self.dropout(items if self.embedding is None else self.embedding(items))
        is_real = torch.arange(inputs.shape[1], device=inputs.device) < lengths[:, None]

        def step(old: State, now: State) -> tuple[State, Tensor]:
            item, real, *dropout = now
            scores = self.score(torch.tanh(self.query(self._last_hidden(old))[:, None] + keys)).transpose(1, 2)
            context = (_weights(scores, source_lengths) @ memory).squeeze(1)
            hidden, new = step_stack(self.rnn, torch.cat([item, context], 1), old, dropout)
            kept = tuple(torch.where(real[:, None], n, o) for n, o in zip(new, old, strict=True))
            return kept, torch.cat([context, hidden], 1)

        attended, new_layers = over_time(step, tuple(layers), (inputs, is_real, *self._dropout_between(inputs)))
        attentional = torch.tanh(self.combine(self.dropout(attended)))
        return self.dropout(attentional), (*new_layers, keys, memory, source_lengths)

    def _last_hidden(self, layers: State) -> Tensor:
        """The hidden vector of the last layer."""
        return layers[-2] if self.cell == "lstm" else layers[-1]

    def _dropout_between(self, inputs: Tensor) -> list[Tensor]:
        """Factors `[row, time, hidden_size]` for each boundary between two layers; drawn before the first step."""
        if not self.training:
            return []
        ones = inputs.new_ones(*inputs.shape[:2], self.rnn.hidden_size)
        return [self.dropout(ones) for _ in range(self.rnn.num_layers - 1)]


def _weights(scores: Tensor, source_lengths: Tensor) -> Tensor:
    """Attention weights from scores `[row, time, source]`; zero on the padding of a source."""
    mask = real_items(source_lengths, scores.shape[2])
    return torch.softmax(scores.masked_fill(~mask[:, None], float("-inf")), 2)
