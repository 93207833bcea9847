"""One recurrent layer as the ONNX operator RNN, LSTM or GRU.

torch.onnx decomposes or freezes these modules (nn.RNN's time axis is unrolled silently) and never emits
`sequence_lens`, so the operators are emitted by name. Gate orders: ONNX operators, opset 14; torch.nn.LSTM,
torch.nn.GRU.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Position in torch's order (LSTM: i f g o; GRU: r z n) of each gate in ONNX's order (LSTM: i o f c; GRU: z r h).
_GATES = {"rnn": (0,), "lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}


def onnx_layer(
    rnn: nn.RNNBase, cell: str, layer: int, inputs: Tensor, lengths: Tensor, state: tuple[Tensor, ...]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Emit one layer while torch.export traces; inputs `[time, row, features]`, state `[direction, row, hidden]` each.

    A bidirectional layer has two directions; the second begins at each row's own last item.

    Returns hidden vectors `[time, row, direction * hidden]` and the new state.
    """
    weights = [_of_directions(rnn, name, cell, layer) for name in ("weight_ih", "weight_hh")]
    bias = torch.cat([_of_directions(rnn, name, cell, layer) for name in ("bias_ih", "bias_hh")], dim=1)
    time, rows = inputs.shape[0], inputs.shape[1]
    num_directions = 2 if rnn.bidirectional else 1
    hidden, *last = torch.onnx.ops.symbolic_multi_out(
        cell.upper(),
        [inputs, *weights, bias, lengths.to(torch.int32), *state],
        attrs={"hidden_size": rnn.hidden_size, **_attributes(rnn, cell)},
        dtypes=[inputs.dtype] * (1 + len(state)),
        shapes=[
            [time, num_directions, rows, rnn.hidden_size],
            *([num_directions, rows, rnn.hidden_size] for _ in state),
        ],
        version=14,
    )
    # Squeezed rather than flattened for one direction: fewer operators per step.
    return hidden.transpose(1, 2).flatten(2) if rnn.bidirectional else hidden.squeeze(1), tuple(last)


def _of_directions(rnn: nn.RNNBase, name: str, cell: str, layer: int) -> Tensor:
    """A parameter of a layer in the operator's order of gates, `[direction, ...]`."""
    suffixes = ("", "_reverse") if rnn.bidirectional else ("",)
    return torch.stack([_reorder(getattr(rnn, f"{name}_l{layer}{s}"), cell, rnn.hidden_size) for s in suffixes])


def _reorder(weight: Tensor, cell: str, hidden_size: int) -> Tensor:
    # Slices rather than chunk: Split has several outputs, which the constant folder leaves alone.
    return torch.cat([weight[gate * hidden_size : (gate + 1) * hidden_size] for gate in _GATES[cell]])


def _attributes(rnn: nn.RNNBase, cell: str) -> dict[str, int | str | list[str]]:
    attributes: dict[str, int | str | list[str]] = {"direction": "bidirectional"} if rnn.bidirectional else {}
    if cell == "gru":
        attributes["linear_before_reset"] = 1
    if cell == "rnn":
        attributes["activations"] = ["Relu" if rnn.mode == "RNN_RELU" else "Tanh"] * (2 if rnn.bidirectional else 1)
    return attributes
