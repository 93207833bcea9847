"""Recurrent layers run one step at a time, for decoders that feed each output into the next step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

State = tuple[Tensor, ...]
Step = Callable[[State, State], tuple[State, Tensor]]


def over_time(step: Step, state: State, inputs: State) -> tuple[Tensor, State]:
    """Run `step(state, inputs at one time) -> (state, output)` over inputs `[row, time, ...]`.

    Returns the outputs `[row, time, ...]` and the last state. Exported as one ONNX Scan.
    """
    by_time = tuple(part.transpose(0, 1) for part in inputs)
    if torch.compiler.is_exporting():
        from torch._higher_order_ops.scan import scan

        last, outputs = scan(step, state, by_time)
        return outputs.transpose(0, 1), last
    outputs = []
    for now in zip(*(part.unbind() for part in by_time), strict=True):
        state, output = step(state, now)
        outputs.append(output)
    return torch.stack(outputs, 1), state


def step_stack(rnn: nn.RNNBase, inputs: Tensor, state: State, dropout: Sequence[Tensor] = ()) -> tuple[Tensor, State]:
    """One step of the stack of an nn.LSTM or nn.GRU; inputs `[row, features]`, state as in `RecurrentModule`.

    `dropout` holds the factors for the inputs of each layer but the first. Returns the last layer's hidden
    vectors `[row, hidden_size]` and the new state. Formulas: torch.nn.LSTM, torch.nn.GRU.
    """
    new_state: list[Tensor] = []
    per_layer = len(state) // rnn.num_layers
    for layer in range(rnn.num_layers):
        if layer and dropout:
            inputs = inputs * dropout[layer - 1]
        weights = [getattr(rnn, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        cell = _lstm_cell if isinstance(rnn, nn.LSTM) else _gru_cell
        new = cell(inputs, state[layer * per_layer : (layer + 1) * per_layer], *weights)
        new_state += new
        inputs = new[0]
    return inputs, tuple(new_state)


def _lstm_cell(inputs: Tensor, state: State, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> State:
    hidden, cell = state
    gates = F.linear(inputs, w_ih, b_ih) + F.linear(hidden, w_hh, b_hh)
    enter, forget, candidate, leave = gates.chunk(4, 1)
    cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(candidate)
    return torch.sigmoid(leave) * torch.tanh(cell), cell


def _gru_cell(inputs: Tensor, state: State, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> State:
    (hidden,) = state
    new, old = F.linear(inputs, w_ih, b_ih).chunk(3, 1), F.linear(hidden, w_hh, b_hh).chunk(3, 1)
    reset, update = torch.sigmoid(new[0] + old[0]), torch.sigmoid(new[1] + old[1])
    candidate = torch.tanh(new[2] + reset * old[2])
    return ((1 - update) * candidate + update * hidden,)
