"""Recurrent encoder and decoder (Sutskever et al. 2014), with a bidirectional encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from statewise_training.families.encoder_decoder.decoders import BahdanauDecoder, Decoder, LuongDecoder
from statewise_training.families.recurrent.config import Cell
from statewise_training.families.recurrent.locked_dropout import LockedDropout
from statewise_training.families.recurrent.onnx_operators import onnx_layer

if TYPE_CHECKING:
    from statewise_training.families.encoder_decoder.config import RecurrentEncoderDecoderConfig

State = tuple[Tensor, ...]

_DECODERS = {"none": Decoder, "luong": LuongDecoder, "bahdanau": BahdanauDecoder}


class RecurrentEncoderDecoder(nn.Module):
    """Encoder and decoder, joined by the encoder's last state and the attention's memory.

    State: each layer's vectors as in `RecurrentModule`, then the memory of the decoder's attention, if any, and the
    length of the source.
    """

    def __init__(self, cell: Cell, config: RecurrentEncoderDecoderConfig) -> None:
        super().__init__()
        self.encoder = BidirectionalEncoder(cell, config)
        self.decoder = _DECODERS[config.attention](cell, config)
        if config.shares_embedding:
            self.encoder.embedding = self.decoder.embedding

    def encode(self, source: Tensor, source_lengths: Tensor) -> State:
        """First state: the encoder's last one, and the attention's memory."""
        encoded, last = self.encoder(source, source_lengths)
        return (*last, *self.decoder.memory(encoded, source_lengths))

    def forward(self, items: Tensor, lengths: Tensor, state: State) -> tuple[Tensor, State]:
        """Hidden vectors `[row, time, hidden_size]`, and the state after each row's last item."""
        return self.decoder(items, lengths, state)

    def head(self, hidden: Tensor) -> Tensor:
        """Outputs for the next item, `[..., output_size]`."""
        return self.decoder.head(hidden)


class BidirectionalEncoder(nn.Module):
    """Layers that read forward and backward, each direction half as wide as the decoder."""

    def __init__(self, cell: Cell, config: RecurrentEncoderDecoderConfig) -> None:
        super().__init__()
        input_size = config.source_features or config.embedding_width
        is_text = config.source_vocabulary_size is not None
        self.embedding = nn.Embedding(config.source_vocabulary_size, input_size) if is_text else nn.Identity()
        self.cell = cell
        self.dropout = LockedDropout(config.dropout) if config.dropout_kind == "locked" else nn.Dropout(config.dropout)
        kind = nn.LSTM if cell == "lstm" else nn.GRU
        sizes = [input_size, *[config.hidden_size] * (config.num_layers - 1)]
        self.layers = nn.ModuleList(
            kind(size, config.hidden_size // 2, batch_first=True, bidirectional=True) for size in sizes
        )

    def forward(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, State]:
        """Encoded items `[row, source, hidden_size]`, and each layer's vectors after its last item.

        Both directions are concatenated; the backward one ends with a row's first item.
        """
        hidden = self.dropout(self.embedding(source))
        # An empty row reads one item of padding; its output is never used.
        lengths = lengths.clamp(min=1)
        run_layer = self._onnx_layer if torch.compiler.is_exporting() else self._eager_layer
        last: list[Tensor] = []
        for layer in self.layers:
            hidden, ends = run_layer(layer, hidden, lengths)
            hidden = self.dropout(hidden)
            last += [torch.cat([end[0], end[1]], 1) for end in ends]
        return hidden, tuple(last)

    def _eager_layer(self, layer: nn.RNNBase, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, State]:
        packed = pack_padded_sequence(inputs, lengths.cpu(), batch_first=True, enforce_sorted=False)
        hidden, last = layer(packed)
        padded, _ = pad_packed_sequence(hidden, batch_first=True, total_length=inputs.shape[1])
        return padded, last if isinstance(last, tuple) else (last,)

    def _onnx_layer(self, layer: nn.RNNBase, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, State]:
        zeros = inputs.new_zeros(2, inputs.shape[0], layer.hidden_size)
        state = (zeros, zeros) if self.cell == "lstm" else (zeros,)
        hidden, last = onnx_layer(layer, self.cell, 0, inputs.transpose(0, 1), lengths, state)
        return hidden.transpose(0, 1), last
