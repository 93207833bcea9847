"""The recurrent step function, on the weights of torch.nn.RNN, LSTM and GRU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from statewise.model.spec import HeadSpec
from statewise_training.families.recurrent.config import Cell, DropoutKind
from statewise_training.families.recurrent.gates import gate_activations
from statewise_training.families.recurrent.locked_dropout import LockedDropout, single_layer
from statewise_training.families.recurrent.onnx_operators import onnx_layer
from statewise_training.families.shared.mixture import output_layer

State = tuple[Tensor, ...]


class RecurrentModule(nn.Module):
    """A stack of recurrent layers with an embedding before and a linear head behind.

    `embedding`, `rnn` and `output` are plain torch.nn modules, so their state dicts load from any PyTorch model.
    State: for each layer the hidden vector `[row, hidden_size]`, and for LSTM the cell vector after it.
    `context_size`: features that a subclass concatenates to every item.
    """

    def __init__(
        self,
        cell: Cell,
        *,
        vocabulary_size: int | None,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        dropout: float,
        tied_embeddings: bool,
        head: HeadSpec,
        dropout_kind: DropoutKind = "standard",
        nonlinearity: str = "tanh",
        context_size: int = 0,
    ) -> None:
        super().__init__()
        sizes = (input_size + context_size, hidden_size, num_layers)
        # torch.nn warns about dropout in a single layer, where it has no effect.
        between = {"dropout": dropout if num_layers > 1 else 0.0, "batch_first": True}
        if cell == "rnn":
            self.rnn: nn.RNNBase = nn.RNN(*sizes, nonlinearity=nonlinearity, **between)
        else:
            self.rnn = {"lstm": nn.LSTM, "gru": nn.GRU}[cell](*sizes, **between)
        self.cell = cell
        self.dropout_kind = dropout_kind
        self.embedding = nn.Embedding(vocabulary_size, input_size) if vocabulary_size else None
        self.dropout = LockedDropout(dropout) if dropout_kind == "locked" else nn.Dropout(dropout)
        self.output = output_layer(hidden_size, head)
        if self.embedding is not None and tied_embeddings:
            # Drawn from N(0, 1), an embedding would make the tied head's first logits as wide as sqrt(hidden_size).
            nn.init.normal_(self.embedding.weight, std=hidden_size**-0.5)
            self.output.weight = self.embedding.weight

    def forward(self, items: Tensor, lengths: Tensor, state: State) -> tuple[Tensor, State]:
        """Hidden vectors `[row, time, hidden_size]` of the last layer, and the state after each row's last item."""
        inputs = items if self.embedding is None else self.embedding(items)
        inputs = self.dropout(inputs)
        if torch.compiler.is_exporting():
            hidden, new_state = self._forward_onnx(inputs, lengths, state)
        elif self.training and self.dropout_kind == "locked":
            hidden, new_state = self._forward_layers(inputs, lengths, state)
        else:
            hidden, new_state = self._forward_eager(self.rnn, inputs, lengths, state)
        return self.dropout(hidden), new_state

    def inspect(self, items: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """Gate activations of every layer over whole sequences, `input_gate.0` and so on, `[row, time, hidden]`."""
        inputs = items if self.embedding is None else self.embedding(items)
        activations = {}
        for layer in range(self.rnn.num_layers):
            hidden = self._whole_rows(layer, inputs, lengths)
            gates = gate_activations(self.rnn, layer, inputs, hidden)
            activations |= {f"{name}.{layer}": gate for name, gate in gates.items()}
            inputs = hidden
        return activations

    def head(self, hidden: Tensor) -> Tensor:
        """Outputs for the next item, `[..., output_size]`."""
        return self.output(hidden)

    def _forward_layers(self, inputs: Tensor, lengths: Tensor, state: State) -> tuple[Tensor, State]:
        """Run layer by layer, for locked dropout: torch.nn draws a new mask at every time step between its layers."""
        hidden, per_layer = inputs, len(state) // self.rnn.num_layers
        new_state: list[Tensor] = []
        for layer in range(self.rnn.num_layers):
            old = state[layer * per_layer : (layer + 1) * per_layer]
            hidden = self.dropout(hidden) if layer else hidden
            hidden, new = self._forward_eager(single_layer(self.rnn, layer), hidden, lengths, old)
            new_state += new
        return hidden, tuple(new_state)

    def _forward_eager(self, rnn: nn.RNNBase, inputs: Tensor, lengths: Tensor, state: State) -> tuple[Tensor, State]:
        time = inputs.shape[1]
        if bool((lengths == time).all()):
            hidden, last = rnn(inputs, self._stack(state))
            return hidden, self._unstack(last)
        # Packing refuses empty rows: give them one item, then restore their old state.
        packed = pack_padded_sequence(inputs, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
        packed_hidden, last = rnn(packed, self._stack(state))
        hidden, _ = pad_packed_sequence(packed_hidden, batch_first=True, total_length=time)
        keep = (lengths > 0)[:, None]
        return hidden, tuple(torch.where(keep, new, old) for new, old in zip(self._unstack(last), state, strict=True))

    def _forward_onnx(self, inputs: Tensor, lengths: Tensor, state: State) -> tuple[Tensor, State]:
        hidden = inputs.transpose(0, 1)
        per_layer = len(state) // self.rnn.num_layers
        keep = (lengths > 0)[:, None]
        new_state: list[Tensor] = []
        for layer in range(self.rnn.num_layers):
            old = state[layer * per_layer : (layer + 1) * per_layer]
            only_direction = tuple(vector.unsqueeze(0) for vector in old)
            hidden, new = onnx_layer(self.rnn, self.cell, layer, hidden, lengths, only_direction)
            # The operator zeroes the state of a row without items.
            new_state += [torch.where(keep, n.squeeze(0), o) for n, o in zip(new, old, strict=True)]
        return hidden.transpose(0, 1), tuple(new_state)

    def _whole_rows(self, layer: int, inputs: Tensor, lengths: Tensor) -> Tensor:
        """Hidden vectors of one layer over whole sequences."""
        zeros = inputs.new_zeros(1, inputs.shape[0], self.rnn.hidden_size)
        state = (zeros, zeros) if self.cell == "lstm" else (zeros,)
        if torch.compiler.is_exporting():
            return onnx_layer(self.rnn, self.cell, layer, inputs.transpose(0, 1), lengths, state)[0].transpose(0, 1)
        state = tuple(vector[0] for vector in state)
        return self._forward_eager(single_layer(self.rnn, layer), inputs, lengths, state)[0]

    def _stack(self, state: State) -> Tensor | State:
        if self.cell == "lstm":
            return torch.stack(state[0::2]), torch.stack(state[1::2])
        return torch.stack(state)

    def _unstack(self, last: Tensor | State) -> State:
        if isinstance(last, tuple):
            hidden, cell = last
            return tuple(vector for pair in zip(hidden, cell, strict=True) for vector in pair)
        return tuple(last)
