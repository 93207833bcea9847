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
    """Emit one layer while torch.export traces; inputs `[time, row, features]`, state vectors `[row, hidden]`.

    Returns hidden vectors `[time, row, hidden]` and the new state vectors.
    """
    hidden_size = rnn.hidden_size
    weights = [_reorder(getattr(rnn, f"{name}_l{layer}"), cell, hidden_size) for name in ("weight_ih", "weight_hh")]
    bias = torch.cat([_reorder(getattr(rnn, f"{name}_l{layer}"), cell, hidden_size) for name in ("bias_ih", "bias_hh")])
    time, rows = inputs.shape[0], inputs.shape[1]
    last_shape = [1, rows, hidden_size]
    hidden, *last = torch.onnx.ops.symbolic_multi_out(
        cell.upper(),
        [
            inputs,
            weights[0].unsqueeze(0),
            weights[1].unsqueeze(0),
            bias.unsqueeze(0),
            lengths.to(torch.int32),
            *(vector.unsqueeze(0) for vector in state),
        ],
        attrs={"hidden_size": hidden_size, **_attributes(rnn, cell)},
        dtypes=[inputs.dtype] * (1 + len(state)),
        shapes=[[time, 1, rows, hidden_size], *([last_shape] * len(state))],
        version=14,
    )
    return hidden.squeeze(1), tuple(vector.squeeze(0) for vector in last)


def _reorder(weight: Tensor, cell: str, hidden_size: int) -> Tensor:
    # Slices rather than chunk: Split has several outputs, which the constant folder leaves alone.
    return torch.cat([weight[gate * hidden_size : (gate + 1) * hidden_size] for gate in _GATES[cell]])


def _attributes(rnn: nn.RNNBase, cell: str) -> dict[str, int | list[str]]:
    if cell == "gru":
        return {"linear_before_reset": 1}
    if cell == "rnn":
        return {"activations": ["Relu" if rnn.mode == "RNN_RELU" else "Tanh"]}
    return {}
