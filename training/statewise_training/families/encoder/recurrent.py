"""Bidirectional recurrent layers over whole sequences, on the weights of torch.nn.RNN, LSTM and GRU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from statewise_training.families.encoder.answers import Answer
from statewise_training.families.recurrent.config import Cell
from statewise_training.families.recurrent.gates import gate_activations
from statewise_training.families.recurrent.locked_dropout import LockedDropout, single_layer
from statewise_training.families.recurrent.onnx_operators import onnx_layer

if TYPE_CHECKING:
    from statewise_training.families.encoder.config import RecurrentEncoderConfig


class RecurrentEncoder(nn.Module):
    """An embedding, a stack of layers that read forward and backward, and the answer.

    `embedding`, `rnn` and `output` are torch.nn modules, so their state dicts load from any PyTorch model.
    """

    def __init__(self, cell: Cell, config: RecurrentEncoderConfig) -> None:
        super().__init__()
        input_size = config.features or config.embedding_width
        kinds = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
        options = {"nonlinearity": config.nonlinearity} if cell == "rnn" else {}
        self.rnn: nn.RNNBase = kinds[cell](
            input_size, config.hidden_size, config.num_layers, batch_first=True, bidirectional=True, **options
        )
        self.cell = cell
        self.embedding = nn.Embedding(config.vocabulary_size, input_size) if config.vocabulary_size else None
        self.dropout = LockedDropout(config.dropout) if config.dropout_kind == "locked" else nn.Dropout(config.dropout)
        self.output = Answer(2 * config.hidden_size, config)

    def forward(self, items: Tensor, lengths: Tensor, state: tuple[()]) -> tuple[Tensor, tuple[()]]:
        """Pooled hidden vectors for the head; both directions are concatenated per item."""
        hidden = self.dropout(items if self.embedding is None else self.embedding(items))
        for layer in range(self.rnn.num_layers):
            hidden = self.dropout(self._run_layer(layer, hidden, lengths))
        return self.output.pool(hidden, lengths), ()

    def inspect(self, items: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """Gate activations of every layer: `input_gate.0` forward, `input_gate.0.reverse` backward."""
        inputs = items if self.embedding is None else self.embedding(items)
        activations = {}
        for layer in range(self.rnn.num_layers):
            hidden = self._run_layer(layer, inputs, lengths)
            forward, backward = hidden.chunk(2, dim=2)
            gates = gate_activations(self.rnn, layer, inputs, forward)
            activations |= {f"{name}.{layer}": gate for name, gate in gates.items()}
            turned = _reverse(inputs, lengths), _reverse(backward, lengths)
            gates = gate_activations(self.rnn, layer, *turned, direction="_reverse")
            activations |= {f"{name}.{layer}.reverse": _reverse(gate, lengths) for name, gate in gates.items()}
            inputs = hidden
        return activations

    def head(self, hidden: Tensor) -> Tensor:
        """Labels, a value or an embedding."""
        return self.output(hidden)

    def _run_layer(self, layer: int, inputs: Tensor, lengths: Tensor) -> Tensor:
        """Concatenated hidden vectors of both directions, `[row, time, 2 * hidden_size]`."""
        run = self._onnx_layer if torch.compiler.is_exporting() else self._eager_layer
        return run(layer, inputs, lengths)

    def _eager_layer(self, layer: int, inputs: Tensor, lengths: Tensor) -> Tensor:
        """Run padded rows, real items reversed for the backward direction: several times as fast as packing."""
        forward, _ = single_layer(self.rnn, layer)(inputs)
        backward, _ = single_layer(self.rnn, layer, "_reverse")(_reverse(inputs, lengths))
        return torch.cat([forward, _reverse(backward, lengths)], dim=2)

    def _onnx_layer(self, layer: int, inputs: Tensor, lengths: Tensor) -> Tensor:
        zeros = inputs.new_zeros(2, inputs.shape[0], self.rnn.hidden_size)
        state = (zeros, zeros) if self.cell == "lstm" else (zeros,)
        hidden, _ = onnx_layer(self.rnn, self.cell, layer, inputs.transpose(0, 1), lengths, state)
        return hidden.transpose(0, 1)


def _reverse(rows: Tensor, lengths: Tensor) -> Tensor:
    """Reverse the real items of each row of `[row, time, features]`; padding stays in place."""
    time = torch.arange(rows.shape[1], device=rows.device)
    turned = lengths[:, None] - 1 - time
    places = torch.where(turned >= 0, turned, time)
    return rows.gather(1, places[:, :, None].expand_as(rows))
