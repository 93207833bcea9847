"""The Transformer's step function: caches, positions, norms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from statewise.plugins import load_plugin
from statewise_training.families.shared.state import zero_state
from statewise_training.families.transformer.positions import rotary_table, rotate, sinusoidal_table
from statewise_training.run.module import unroll

SHAPES: dict[str, dict[str, Any]] = {
    "rotary, grouped heads": {"num_heads": 8, "num_key_value_heads": 2, "head_size": 8},
    "learned, tied": {"positions": "learned", "tied_embeddings": True, "activation": "gelu_tanh"},
    "sinusoidal, post-norm": {"positions": "sinusoidal", "norm_position": "post", "activation": "relu"},
    "none, Llama's layers": {"positions": "none", "norm": "rms_norm", "activation": "swiglu", "bias": False},
}


def build(**options: Any) -> tuple[nn.Module, Any]:
    """A small module with random weights, in evaluation mode, and its spec."""
    plugin = load_plugin("transformer")
    sizes = {"vocabulary_size": 50, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_positions": 40}
    config = plugin.config_class.model_validate({**sizes, **options})
    torch.manual_seed(0)
    module = plugin.build(config)
    for parameter in module.parameters():
        # Far from their small initial values, so that every part shows in the output.
        nn.init.normal_(parameter, std=0.3)
    return module.eval(), plugin.spec(config)


@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_ragged_chunks_over_a_cache_give_what_the_whole_sequence_gives(shape: str) -> None:
    """Rows fed in chunks of different lengths, in a larger cache, have the outputs of one unrolling."""
    module, spec = build(**SHAPES[shape])
    items = torch.randint(0, 50, (3, 20))
    expected = unroll(module, spec, items)

    state = zero_state(spec, 3, 33)
    fed = torch.zeros(3, dtype=torch.int64)
    for lengths in ([7, 1, 4], [1, 1, 0], [12, 2, 9]):
        lengths = torch.tensor(lengths)
        width = int(lengths.max())
        chunk = torch.stack([F.pad(items[row, fed[row] :][:width], (0, width))[:width] for row in range(3)])
        hidden, state = module(chunk, lengths, state)
        output = module.head(hidden)
        for row in range(3):
            start, stop = int(fed[row]), int(fed[row] + lengths[row])
            torch.testing.assert_close(output[row, : lengths[row]], expected[row, start:stop], atol=1e-5, rtol=1e-5)
        fed += lengths

    assert state[0].tolist() == [20, 4, 13]


@pytest.mark.parametrize("shape", [*SHAPES.values(), {"vocabulary_size": None, "features": 3}], ids=str)
@torch.inference_mode()
def test_the_mixed_step_gives_what_two_steps_give(shape: dict[str, Any]) -> None:
    """Rows with one item each and a chunk of one more row have the outputs and caches of two separate steps."""
    module, spec = build(**shape)

    def items_of(rows: int, time: int) -> torch.Tensor:
        return torch.randn(rows, time, 3) if "features" in shape else torch.randint(0, 50, (rows, time))

    _, state = module(items_of(3, 9), torch.tensor([9, 2, 5]), zero_state(spec, 3, 33))
    items, chunk = items_of(2, 1), items_of(1, 7)
    of_rows, of_chunk = tuple(part[:2] for part in state), tuple(part[2:] for part in state)
    rows, new_state = module(items, torch.ones(2, dtype=torch.int64), of_rows)
    last, new_chunk_state = module(chunk, torch.tensor([7]), of_chunk)

    hidden, *mixed_states = module.forward_mixed(items, of_rows, chunk, of_chunk)

    torch.testing.assert_close(hidden, torch.cat([rows[:, 0], last[:, -1]]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tuple(mixed_states), (new_state, new_chunk_state), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_an_output_does_not_depend_on_later_items() -> None:
    """Attention is causal: changing the last items leaves the outputs before them as they are."""
    module, spec = build()
    items = torch.randint(0, 50, (1, 20))
    changed = torch.cat([items[:, :12], (items[:, 12:] + 1) % 50], dim=1)

    before, after = unroll(module, spec, items), unroll(module, spec, changed)

    assert torch.equal(before[:, :12], after[:, :12])
    assert not torch.equal(before[:, 12:], after[:, 12:])


@torch.inference_mode()
def test_one_head_is_the_textbook_formula() -> None:
    """softmax(q k^T / sqrt(d)) v over the items so far, as in Vaswani et al. 2017."""
    module, spec = build(num_layers=1, num_heads=1, positions="none", norm_position="pre", activation="relu")
    items = torch.randint(0, 50, (1, 9))
    layer, x = module.layers[0], module.embedding(items)
    y = F.layer_norm(x, (32,), layer.attention_norm.weight, layer.attention_norm.bias)
    scores = layer.query(y) @ layer.key(y).transpose(1, 2) / 32**0.5
    scores = scores.masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf)
    x = x + layer.attention_output(scores.softmax(dim=2) @ layer.value(y))
    y = F.layer_norm(x, (32,), layer.feed_forward_norm.weight, layer.feed_forward_norm.bias)
    x = x + layer.down(layer.up(y).relu())
    expected = module.head(F.layer_norm(x, (32,), module.final_norm.weight, module.final_norm.bias))

    torch.testing.assert_close(unroll(module, spec, items), expected, atol=1e-5, rtol=1e-5)


def test_rotated_products_depend_on_the_distance_alone() -> None:
    """The product of a query at m and a key at n is that of m + 5 and n + 5 (Su et al. 2021, section 3.2)."""
    table = rotary_table(40, 8, 10_000.0)
    query, key = torch.randn(2, 1, 1, 1, 8)

    def product(m: int, n: int) -> torch.Tensor:
        return (rotate(query, table[m][None, None]) * rotate(key, table[n][None, None])).sum()

    torch.testing.assert_close(product(9, 3), product(14, 8))
    assert not torch.isclose(product(9, 3), product(9, 4))


def test_sinusoids_are_those_of_the_paper() -> None:
    """PE(pos, 2i) = sin(pos / 10000^(2i/d)) and PE(pos, 2i+1) = cos(the same)."""
    table = sinusoidal_table(30, 6)

    angle = torch.tensor(17 / 10_000 ** (4 / 6))
    torch.testing.assert_close(table[17, 4:6], torch.stack([angle.sin(), angle.cos()]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_heads": 5}, "no multiple of num_heads"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"head_size": 20}, "multiple of 8, got 20"),
        ({"num_heads": 8, "hidden_size": 32}, "multiple of 8, got 4; change hidden_size or num_heads"),
        ({"features": 3}, "exactly one"),
        ({"activation": "tanh"}, "activation"),
    ],
)
def test_impossible_shapes_are_refused(options: dict[str, Any], words: str) -> None:
    """A configuration that cannot be built names what is wrong."""
    with pytest.raises(ValidationError, match=words):
        build(**options)
