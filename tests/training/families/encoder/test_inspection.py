"""What encoders show: attention to both sides, gates on the way there and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from statewise.plugins import load_plugin
from statewise_training.families.transformer.caches import ShownRows

LENGTHS = [9, 1, 4]


def build(name: str, **options: Any) -> nn.Module:
    """A small tagger with weights large enough to show."""
    plugin = load_plugin(name)
    sizes = {"features": 3, "hidden_size": 16, "num_layers": 2, "labels": ("a", "b"), "labels_per": "item"}
    config = plugin.config_class.model_validate({**sizes, **options})
    assert plugin.inspects(config) is (name != "rnn_encoder")
    torch.manual_seed(0)
    module = plugin.build(config)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.eval()


@torch.inference_mode()
def test_an_encoder_attends_to_all_of_its_row_and_to_no_padding() -> None:
    """Weights add up to 1 over the real items of a row, those behind a query too, and padding gets exactly 0."""
    module = build("transformer_encoder", num_heads=2)

    shown = module.inspect(torch.randn(3, 9, 3), torch.tensor(LENGTHS))

    assert list(shown) == ["attention.0", "attention.1"]
    for weights in shown.values():
        for row, length in enumerate(LENGTHS):
            assert (weights[row, :, :length, :length] > 0).all()
            assert not weights[row, :, :, length:].any()
            torch.testing.assert_close(weights[row].sum(2), torch.ones(2, 9))


@torch.inference_mode()
def test_shown_attention_is_what_the_encoder_computes() -> None:
    """The rows that keep their weights give the hidden vectors of those that do not."""
    module = build("transformer_encoder", num_heads=4, num_key_value_heads=2)
    items, lengths = torch.randn(3, 9, 3), torch.tensor(LENGTHS)
    expected, _ = module(items, lengths, ())

    rows = ShownRows((torch.arange(9) < lengths[:, None])[:, None, None])
    hidden = module.run(items, torch.arange(9)[None], rows)

    for row, length in enumerate(LENGTHS):
        torch.testing.assert_close(hidden[row, :length], expected[row, :length], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@torch.inference_mode()
def test_gates_on_the_way_back_are_those_of_the_row_turned_round(cell: str) -> None:
    """A module with its directions exchanged shows, for the turned row, the same gates under the other name."""
    module, mirrored = (build(f"{cell}_encoder", num_layers=1) for _ in range(2))
    for name, parameter in mirrored.rnn.named_parameters():
        other = name.removesuffix("_reverse") if name.endswith("_reverse") else f"{name}_reverse"
        parameter.copy_(module.rnn.get_parameter(other))
    items, lengths = torch.randn(3, 9, 3), torch.tensor(LENGTHS)
    turned = items.clone()
    for row, length in enumerate(LENGTHS):
        turned[row, :length] = items[row, :length].flip(0)

    shown, seen_back = module.inspect(items, lengths), mirrored.inspect(turned, lengths)

    for name, gate in shown.items():
        other = name.removesuffix(".reverse") if name.endswith(".reverse") else f"{name}.reverse"
        for row, length in enumerate(LENGTHS):
            torch.testing.assert_close(seen_back[other][row, :length].flip(0), gate[row, :length])


@pytest.mark.parametrize("name", ["lstm_encoder", "gru_encoder", "transformer_encoder"])
@torch.inference_mode()
def test_a_row_shows_the_same_alone_and_in_company(name: str) -> None:
    """Padding and neighbours leave what a row shows as it is."""
    module = build(name)
    items, lengths = torch.randn(3, 9, 3), torch.tensor(LENGTHS)

    together, alone = module.inspect(items, lengths), module.inspect(items[2:, :4], torch.tensor([4]))

    for kind, tensor in alone.items():
        own = together[kind][2, :, :4, :4] if tensor.ndim == 4 else together[kind][2, :4]
        torch.testing.assert_close(own, tensor[0])


def test_a_bidirectional_elman_network_has_nothing_to_show() -> None:
    """It has no gates."""
    build("rnn_encoder")
