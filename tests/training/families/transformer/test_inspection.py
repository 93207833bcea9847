"""Attention weights that a Transformer shows, against what its attention computes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from statewise_training.families.shared.state import zero_state
from statewise_training.families.transformer.attention import causal_weights, weighted_values
from tests.training.families.transformer.test_module import SHAPES, build


@pytest.mark.parametrize("num_shared", [4, 2, 1])
def test_weights_times_values_is_scaled_dot_product_attention(num_shared: int) -> None:
    """Values weighed by what is shown are the attention's own output, for heads in groups too."""
    torch.manual_seed(1)
    query, key, value = (torch.randn(3, 9, heads, 8) for heads in (4, num_shared, num_shared))

    weights = causal_weights(query, key)

    expected = F.scaled_dot_product_attention(
        *(part.transpose(1, 2) for part in (query, key, value)), is_causal=True, enable_gqa=True
    )
    torch.testing.assert_close(weighted_values(weights, value), expected.transpose(1, 2), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_every_query_shares_out_one_among_the_keys_before_it(shape: str) -> None:
    """Rows of weights add up to 1, none is negative, and what comes later gets exactly 0."""
    module, _ = build(**SHAPES[shape])

    shown = module.inspect(torch.randint(0, 50, (3, 20)), torch.tensor([20, 7, 1]))

    assert list(shown) == ["attention.0", "attention.1"]
    for weights in shown.values():
        assert weights.shape[0] == 3
        assert weights.shape[2:] == (20, 20)
        assert (weights >= 0).all()
        assert not weights.triu(1).any()
        torch.testing.assert_close(weights.sum(3), torch.ones(weights.shape[:3]))


@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_what_is_shown_is_what_the_step_function_does(shape: str) -> None:
    """A forward pass in which the shown weights stand for the attention gives the step function's hidden vectors."""
    module, spec = build(**SHAPES[shape])
    items, lengths = torch.randint(0, 50, (2, 12)), torch.tensor([12, 5])
    expected, _ = module(items, lengths, zero_state(spec, 2, 12))

    shown = iter(module.inspect(items, lengths).values())

    class Replayed:
        def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float) -> torch.Tensor:
            return weighted_values(next(shown), value)

    hidden = module.run(items, torch.arange(12).expand(2, 12), Replayed())
    torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_the_weights_of_a_row_are_its_own() -> None:
    """A short row shows the same beside a longer one as alone."""
    module, _ = build()
    items = torch.randint(0, 50, (2, 12))

    together = module.inspect(items, torch.tensor([12, 5]))
    alone = module.inspect(items[1:, :5], torch.tensor([5]))

    for name, weights in alone.items():
        torch.testing.assert_close(together[name][1, :, :5, :5], weights[0])
