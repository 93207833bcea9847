"""Gate activations of a recurrent layer, recomputed from its inputs and hidden vectors.

A gate depends on the input and the previous hidden vector, and on no other gate: given the hidden vectors of all times,
one matrix product gives all gates, without a loop over time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def gate_activations(
    rnn: nn.RNNBase, layer: int, inputs: Tensor, hidden: Tensor, *, direction: str = ""
) -> dict[str, Tensor]:
    """Activations by name, `[row, time, hidden_size]`, named as torch.nn.LSTM and torch.nn.GRU name them.

    inputs `[row, time, features]` and hidden `[row, time, hidden_size]`: the layer's input and output from zero state.
    LSTM: c = forget_gate * c + input_gate * cell_gate, hidden = output_gate * tanh(c).
    GRU: hidden = (1 - update_gate) * new_gate + update_gate * hidden.
    `direction` "_reverse" names the weights of the backward direction; inputs and hidden must then be reversed already.
    """
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    weights = {name: getattr(rnn, f"{name}_l{layer}{direction}") for name in names}
    before = F.pad(hidden[:, :-1], (0, 0, 1, 0))
    from_inputs = F.linear(inputs, weights["weight_ih"], weights["bias_ih"])
    from_hidden = F.linear(before, weights["weight_hh"], weights["bias_hh"])
    if isinstance(rnn, nn.LSTM):
        input_gate, forget_gate, cell_gate, output_gate = (from_inputs + from_hidden).chunk(4, dim=2)
        return {
            "input_gate": input_gate.sigmoid(),
            "forget_gate": forget_gate.sigmoid(),
            "cell_gate": cell_gate.tanh(),
            "output_gate": output_gate.sigmoid(),
        }
    parts = zip(from_inputs.chunk(3, dim=2), from_hidden.chunk(3, dim=2), strict=True)
    (reset, reset_hidden), (update, update_hidden), (new, new_hidden) = parts
    reset_gate = torch.sigmoid(reset + reset_hidden)
    return {
        "reset_gate": reset_gate,
        "update_gate": torch.sigmoid(update + update_hidden),
        "new_gate": torch.tanh(new + reset_gate * new_hidden),
    }
