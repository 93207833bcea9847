"""Gates that a recurrent module shows, against the recurrence that they are part of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from statewise.plugins import load_plugin
from statewise_training.families.shared.standardized import StandardizedInput
from statewise_training.families.shared.state import zero_state

LENGTHS = [11, 1, 6]


def build(name: str, **options: Any) -> tuple[nn.Module, Any]:
    """A small module with weights large enough that its gates open and close, and its spec."""
    plugin = load_plugin(name)
    config = plugin.config_class.model_validate({"features": 3, "hidden_size": 8, "num_layers": 2, **options})
    torch.manual_seed(0)
    module = plugin.build(config)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.8)
    return module.eval(), plugin.spec(config)


def recur(name: str, gates: dict[str, Tensor]) -> Tensor:
    """Hidden vectors `[row, time, hidden]` that the gates lead to, step by step (torch.nn.LSTM, torch.nn.GRU)."""
    hidden = cell = torch.zeros_like(next(iter(gates.values()))[:, 0])
    steps = []
    for now in zip(*(gate.unbind(1) for gate in gates.values()), strict=True):
        if name == "lstm":
            input_gate, forget_gate, cell_gate, output_gate = now
            cell = forget_gate * cell + input_gate * cell_gate
            hidden = output_gate * torch.tanh(cell)
        else:
            _, update_gate, new_gate = now
            hidden = (1 - update_gate) * new_gate + update_gate * hidden
        steps.append(hidden)
    return torch.stack(steps, dim=1)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("lstm", ["input_gate", "forget_gate", "cell_gate", "output_gate"]),
        ("gru", ["reset_gate", "update_gate", "new_gate"]),
    ],
)
@torch.inference_mode()
def test_gates_lead_to_the_hidden_vectors(name: str, kinds: list[str]) -> None:
    """The recurrence with the shown gates gives each row's hidden vectors of the last layer, and its last state."""
    module, spec = build(name)
    items, lengths = torch.randn(3, 11, 3), torch.tensor(LENGTHS)
    hidden, state = module(items, lengths, zero_state(spec, 3, 0))

    shown = module.inspect(items, lengths)

    assert list(shown) == [f"{kind}.{layer}" for layer in range(2) for kind in kinds]
    for layer in range(2):
        led_to = recur(name, {kind: shown[f"{kind}.{layer}"] for kind in kinds})
        last = state[layer * len(state) // 2]
        for row, length in enumerate(LENGTHS):
            torch.testing.assert_close(led_to[row, length - 1], last[row], atol=1e-5, rtol=1e-5)
            if layer == 1:
                torch.testing.assert_close(led_to[row, :length], hidden[row, :length], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_the_reset_gate_scales_what_the_new_gate_sees_of_the_past() -> None:
    """The GRU's reset gate is shown as the equation of torch.nn.GRU has it."""
    module, _ = build("gru", num_layers=1)
    items = torch.randn(1, 5, 3)
    shown = module.inspect(items, torch.tensor([5]))
    rnn, before = module.rnn, module.rnn(items)[0][:, 3]

    hidden_part = before @ rnn.weight_hh_l0.T + rnn.bias_hh_l0
    input_part = items[:, 4] @ rnn.weight_ih_l0.T + rnn.bias_ih_l0
    expected = torch.sigmoid(input_part[:, :8] + hidden_part[:, :8])

    torch.testing.assert_close(shown["reset_gate.0"][:, 4], expected)
    new = torch.tanh(input_part[:, 16:] + expected * hidden_part[:, 16:])
    torch.testing.assert_close(shown["new_gate.0"][:, 4], new)


@torch.inference_mode()
def test_a_standardised_model_shows_its_gates_for_raw_vectors() -> None:
    """Raw vectors show what their standardised ones show in the model inside."""
    module, _ = build("lstm")
    raw, lengths = 5 + 2 * torch.randn(2, 4, 3), torch.tensor([4, 4])

    shown = StandardizedInput(module, [5.0] * 3, [2.0] * 3).inspect(raw, lengths)

    for name, gate in module.inspect((raw - 5) / 2, lengths).items():
        torch.testing.assert_close(shown[name], gate)


def test_plain_recurrent_networks_have_nothing_to_show() -> None:
    """The plugins say which modules can be inspected."""
    answers = {}
    for name in ("rnn", "lstm", "gru", "transformer", "markov"):
        plugin = load_plugin(name)
        answers[name] = plugin.inspects(plugin.config_class.model_validate({"vocabulary_size": 5}))

    assert answers == {"rnn": False, "lstm": True, "gru": True, "transformer": True, "markov": False}
