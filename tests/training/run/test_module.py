from __future__ import annotations

import pytest
import torch

from statewise.plugins import load_plugin
from statewise_training.config import ScheduleConfig
from statewise_training.run.module import learning_rate_factor, unroll


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
def test_padding_changes_nothing_before_it(name: str) -> None:
    """A row's outputs are those of the row alone, whatever stands right of it."""
    plugin = load_plugin(name)
    config = plugin.config_class(vocabulary_size=9, hidden_size=8, num_layers=2)
    module, spec = plugin.build(config).eval(), plugin.spec(config)
    items = torch.randint(9, (3, 7))

    padded = unroll(module, spec, torch.cat([items, torch.randint(9, (3, 5))], 1))

    assert torch.allclose(unroll(module, spec, items), padded[:, :7], atol=1e-6)


def test_items_are_real_vectors_in_the_precision_of_the_module() -> None:
    """A module in double precision reads single-precision data."""
    plugin = load_plugin("gru")
    config = plugin.config_class(features=2, hidden_size=8)

    output = unroll(plugin.build(config).double(), plugin.spec(config), torch.randn(3, 4, 2))

    assert ((3, 4, 2), torch.float64) == (tuple(output.shape), output.dtype)


@pytest.mark.parametrize("kind", ["constant", "cosine", "linear"])
def test_the_schedule_warms_up_and_ends_where_it_should(kind: str) -> None:
    """From 1/10 to all in ten steps, then down without a rise to the final fraction, where it stays."""
    schedule = ScheduleConfig(kind=kind, warmup_steps=10, final_fraction=0.2)
    factors = [learning_rate_factor(step, 100, schedule) for step in range(120)]

    assert [pytest.approx(factors[step]) for step in (0, 4, 9, 10)] == [0.1, 0.5, 1.0, 1.0]
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert [1.0 if kind == "constant" else 0.2] * 2 == [pytest.approx(factors[step]) for step in (100, 119)]


def test_a_warm_up_longer_than_the_run_never_overshoots() -> None:
    """The factor stays within (0, 1] even where the run ends first."""
    schedule = ScheduleConfig(kind="cosine", warmup_steps=50)

    assert all(0 < learning_rate_factor(step, 10, schedule) <= 1 for step in range(60))
