"""The encoders' modules: what they compute; tests/export/test_encoder_parity.py has their graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from statewise.plugins import load_plugin

RECURRENT = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
FAMILIES = ("transformer_encoder", "lstm_encoder", "gru_encoder", "rnn_encoder")
LENGTHS = torch.tensor([7, 3, 1, 6, 2])


def build(family: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    plugin = load_plugin(family)
    settings = {"features": 4, "hidden_size": 16, "num_layers": 2, "labels": ("a", "b", "c"), **options}
    return plugin.build(plugin.config_class.model_validate(settings)).eval()


def answer(module: nn.Module, items: Tensor, lengths: Tensor = LENGTHS) -> Tensor:
    with torch.inference_mode():
        return module.head(module(items, lengths, ())[0])


@pytest.mark.parametrize("kind", RECURRENT)
def test_both_directions_are_those_of_torch(kind: str) -> None:
    """On ragged rows every real item has the vectors that torch's packed, bidirectional stack gives it."""
    module = build(f"{kind}_encoder", labels_per="item")
    items = torch.randn(5, 7, 4)
    packed = pack_padded_sequence(items, LENGTHS, batch_first=True, enforce_sorted=False)
    expected, _ = pad_packed_sequence(module.rnn(packed)[0], batch_first=True)

    hidden, state = module(items, LENGTHS, ())

    is_real = torch.arange(7) < LENGTHS[:, None]
    assert type(module.rnn) is RECURRENT[kind]
    assert state == ()
    torch.testing.assert_close(hidden[is_real], expected[is_real])


@pytest.mark.parametrize("labels_per", ["item", "sequence"])
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_nothing(family: str, labels_per: str) -> None:
    """A row gives the same alone as beside longer ones, whatever lies behind its end."""
    module = build(family, labels_per=labels_per)
    items = torch.randn(5, 7, 4)
    together = answer(module, items)

    for row, length in enumerate(LENGTHS.tolist()):
        alone = answer(module, items[row : row + 1, :length], LENGTHS[row : row + 1])[0]
        beside = together[row] if labels_per == "sequence" else together[row, :length]
        torch.testing.assert_close(beside, alone)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_item_sees_both_sides(family: str) -> None:
    """The labels of the first and of the last item depend on each other's."""
    module = build(family, labels_per="item")
    items = torch.randn(1, 7, 4)
    before = answer(module, items, torch.tensor([7]))

    for changed, seen_at in ((0, 6), (6, 0)):
        other = items.clone()
        other[0, changed] += 1
        assert not torch.allclose(answer(module, other, torch.tensor([7]))[0, seen_at], before[0, seen_at])


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_pooling_takes_the_vectors_that_it_names(pooling: str) -> None:
    """Mean, first and last are taken over real items alone."""
    module = build("gru_encoder", pooling=pooling)
    items = torch.randn(5, 7, 4)
    vectors = build("gru_encoder", labels_per="item")(items, LENGTHS, ())[0]
    rows = [row[:length] for row, length in zip(vectors, LENGTHS.tolist(), strict=True)]
    expected = torch.stack([{"mean": row.mean(0), "first": row[0], "last": row[-1]}[pooling] for row in rows])

    torch.testing.assert_close(module(items, LENGTHS, ())[0], expected)


def test_the_heads_give_what_the_manifest_says() -> None:
    """Labels, embeddings of length 1 and values have the sizes of their specifications."""
    for options, size in (
        ({}, 3),
        ({"head": "embedding", "vector_size": 9}, 9),
        ({"head": "value", "value_size": 2}, 2),
    ):
        module = build("transformer_encoder", **options)
        output = answer(module, torch.randn(5, 7, 4))
        assert output.shape == (5, size)
        if "vector_size" in options:
            torch.testing.assert_close(output.norm(dim=1), torch.ones(5))
