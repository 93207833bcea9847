from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from statewise.plugins import load_plugin
from statewise_training.families.shared.state import zero_state

FAMILIES = ("rnn", "lstm", "gru")


def build(family: str, **options: Any) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Two layers over four features, and a zero state of five rows."""
    torch.manual_seed(0)
    plugin = load_plugin(family)
    config = plugin.config_class(features=4, hidden_size=4, num_layers=2, **options)
    return plugin.build(config), zero_state(plugin.spec(config), 5, 0)


@pytest.mark.parametrize("kind", ["locked", "standard"])
def test_a_locked_mask_is_that_of_the_first_step_and_of_one_row(kind: str) -> None:
    """Layers that pass on what they read show three masks; locked ones stay, standard ones change from step to step."""
    module, _ = build("rnn", nonlinearity="relu", dropout=0.5, dropout_kind=kind)
    for name, parameter in module.rnn.named_parameters():
        nn.init.eye_(parameter) if name.startswith("weight_ih") else nn.init.zeros_(parameter)
    rows, time = 400, 6

    state = (torch.zeros(rows, 4),) * 2
    hidden, _ = module(torch.ones(rows, time, 4), torch.full((rows,), time), state)

    assert set(hidden.unique().tolist()) == {0.0, 8.0}
    assert 0.08 < (hidden[:, 0] > 0).float().mean() < 0.17
    assert len(hidden[:, 0].unique(dim=0)) > 1
    assert torch.equal(hidden, hidden[:, :1].expand_as(hidden)) is (kind == "locked")


@pytest.mark.parametrize("family", FAMILIES)
def test_locked_dropout_changes_training_alone(family: str) -> None:
    """In evaluation outputs and state are bit for bit those of standard dropout; in training two calls differ."""
    outcomes = []
    for kind in ("standard", "locked"):
        module, state = build(family, dropout=0.5, dropout_kind=kind)
        items, lengths = torch.randn(5, 7, 4), torch.tensor([7, 3, 0, 1, 5])
        outcomes.append(module.eval()(items, lengths, state))
        first, second = (module.train()(items, lengths, state)[0] for _ in range(2))
        assert not torch.equal(first, second)

    (hidden, state), (locked_hidden, locked_state) = outcomes
    assert torch.equal(hidden, locked_hidden)
    assert all(map(torch.equal, state, locked_state))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layers_of_a_locked_model_compute_what_the_stack_does(family: str) -> None:
    """Without a rate, training by layers gives the stack's outputs, states and gradients, also of ragged rows."""
    results = []
    for kind in ("standard", "locked"):
        module, zeros = build(family, dropout_kind=kind)
        old = tuple(torch.randn_like(vector) for vector in zeros)
        lengths = torch.tensor([7, 3, 0, 1, 5])
        hidden, state = module.train()(torch.randn(5, 7, 4), lengths, old)
        real = torch.arange(7) < lengths[:, None]
        (hidden[real].square().sum() + sum(vector.sum() for vector in state)).backward()
        results.append([hidden[real], *state, *(parameter.grad for parameter in module.rnn.parameters())])

    for standard, locked in zip(*results, strict=True):
        torch.testing.assert_close(standard, locked)


def test_parameter_names_do_not_depend_on_the_kind_of_dropout() -> None:
    """A checkpoint of the one kind loads into the other."""
    (standard, _), (locked, _) = (build("lstm", dropout=0.5, dropout_kind=kind) for kind in ("standard", "locked"))

    assert locked.load_state_dict(standard.state_dict()).missing_keys == []
    assert all(map(torch.equal, standard.parameters(), locked.parameters()))
