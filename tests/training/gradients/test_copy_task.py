from __future__ import annotations

import pytest
import torch
from torch import nn

from statewise.errors import ConfigError
from statewise_training.gradients import copy_task


def test_a_row_is_a_symbol_and_blanks() -> None:
    """Every symbol occurs, none but at the start; the rest is the blank, which is no symbol."""
    items, symbols = copy_task.make_batch(200, 3, torch.Generator().manual_seed(0))

    assert torch.equal(items[:, 0], symbols)
    assert sorted(set(symbols.tolist())) == list(range(copy_task.NUM_SYMBOLS))
    assert items[:, 1:].unique().tolist() == [copy_task.NUM_SYMBOLS]
    assert items.shape == (200, 4)


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.25])
def test_gradients_follow_the_powers_of_the_recurrent_matrix(factor: float) -> None:
    """At h = 0, where tanh has slope 1, the gradient d steps back is the matrix to the power d times the head's."""
    model = copy_task.build("rnn", 6, seed=0)
    for name, parameter in model.module.rnn.named_parameters():
        nn.init.zeros_(parameter)
        if name == "weight_hh_l0":
            parameter.data = factor * torch.eye(6)

    norms = copy_task.gradient_norms(model, 12, seed=0)

    assert norms == pytest.approx([factor**power for power in range(12)], rel=1e-4)


def test_the_cell_vector_counts_as_state() -> None:
    """An LSTM whose forget gate is open and whose other gates are shut keeps its gradient, in the cell alone."""
    model = copy_task.build("lstm", 3, seed=0)
    for parameter in model.module.rnn.parameters():
        nn.init.zeros_(parameter)
    model.module.rnn.bias_ih_l0.data = torch.tensor([-20.0, 20.0, 0.0, 20.0]).repeat_interleave(3)

    assert copy_task.gradient_norms(model, 5, seed=0) == pytest.approx([1.0] * 5, rel=1e-4)


@pytest.mark.parametrize("family", ["transformer", "autoregressive", "markov", "fractal"])
def test_a_family_without_a_hidden_vector_is_refused(family: str) -> None:
    """A cache, a window of ids, one id, or no such plugin: the name and what to take are told."""
    with pytest.raises(ConfigError, match=rf"families: .*'{family}'.*lstm"):
        copy_task.build(family, 64, seed=0)
