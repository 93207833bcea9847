"""The autoregressive step function: what the window holds, and when it holds nothing yet."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from statewise.plugins import load_plugin
from statewise_training.families.shared.state import zero_state
from statewise_training.run.module import unroll

SHAPES: dict[str, dict[str, Any]] = {
    "tokens, linear": {"vocabulary_size": 50, "window": 3},
    "tokens, layers": {"vocabulary_size": 50, "window": 4, "embedding_size": 6, "hidden_sizes": (9, 7), "dropout": 0.5},
    "tokens, one item": {"vocabulary_size": 50, "window": 1},
    "vectors, linear": {"features": 2, "window": 4},
    "vectors, layers": {"features": 2, "window": 3, "hidden_sizes": (9,), "activation": "tanh"},
}


def build(**options: Any) -> tuple[nn.Module, Any]:
    """A module with random weights, in evaluation mode, and its spec."""
    plugin = load_plugin("autoregressive")
    config = plugin.config_class.model_validate(options)
    torch.manual_seed(0)
    module = plugin.build(config)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.eval(), plugin.spec(config)


def random_items(spec: Any, rows: int, time: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randint(0, 50, (rows, time)) if spec.input.kind == "tokens" else torch.randn(rows, time, 2) + 3


def from_the_definition(module: nn.Module, row: Tensor, window: int) -> Tensor:
    """The output after every item of one row: a loop over its last items, those that there are not yet left blank."""
    weight, bias = module.output.weight, module.output.bias
    outputs = []
    for end in range(1, len(row) + 1):
        items = row[max(0, end - window) : end]
        if module.embedding is None:
            parts = [torch.zeros(row.shape[1])] * (window - len(items)) + [item - module.mean for item in items]
        else:
            table = module.embedding.weight
            parts = [table[0]] * (window - len(items)) + [table[1 + token] for token in items]
        hidden = torch.cat(parts)
        for layer in module.layers:
            hidden = hidden if isinstance(layer, nn.Dropout) else layer(hidden)
        outputs.append(weight @ hidden + bias)
    return torch.stack(outputs)


@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_every_output_follows_from_the_window_before_it(shape: str) -> None:
    """All positions at once give what the definition gives one by one, those with an unfilled window included."""
    module, spec = build(**SHAPES[shape])
    items = random_items(spec, 2, 9)

    outputs = unroll(module, spec, items)

    for row in range(2):
        expected = from_the_definition(module, items[row], SHAPES[shape]["window"])
        assert torch.allclose(outputs[row], expected, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_ragged_chunks_give_what_the_whole_sequence_gives(shape: str) -> None:
    """Rows fed in chunks of different lengths, 0 too, have the outputs of one unrolling."""
    module, spec = build(**SHAPES[shape])
    items = random_items(spec, 3, 20)
    expected = unroll(module, spec, items)

    state = zero_state(spec, 3, 0)
    fed = torch.zeros(3, dtype=torch.int64)
    for lengths in ([7, 1, 4], [1, 0, 0], [12, 2, 9]):
        lengths = torch.tensor(lengths)
        chunk = random_items(spec, 3, 12)  # what is behind a row's length must not matter
        for row in range(3):
            chunk[row, : lengths[row]] = items[row, fed[row] : fed[row] + lengths[row]]
        hidden, state = module(chunk, lengths, state)
        for row in range(3):
            outputs = module.head(hidden[row, : lengths[row]])
            assert torch.allclose(outputs, expected[row, fed[row] : fed[row] + lengths[row]], atol=1e-6)
        fed += lengths

    assert fed.tolist() == [20, 3, 13]


@torch.inference_mode()
def test_no_item_is_told_from_token_0() -> None:
    """A sequence that begins with token 0 is not taken for one that begins after it."""
    module, spec = build(vocabulary_size=50, window=3)

    with_zero, without = (unroll(module, spec, torch.tensor([items]))[0, -1] for items in ([0, 7], [7]))

    assert not torch.allclose(with_zero, without, atol=0.01)


def test_the_window_has_the_types_that_the_server_keeps() -> None:
    """Tokens are held as ids, not as vectors of the embedding; real vectors as they are."""
    tokens, vectors = (build(**SHAPES[shape])[1].state[0] for shape in ("tokens, layers", "vectors, linear"))

    assert (tokens.dtype, tokens.shape) == ("int64", ("row", 4))
    assert (vectors.dtype, vectors.shape) == ("float32", ("row", 4, 2))


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"vocabulary_size": 9, "features": 2}, "exactly one of vocabulary_size"),
        ({"features": 2, "embedding_size": 4}, "embedding_size needs token input"),
        ({"features": 2, "fit": "least_squares", "hidden_sizes": (4,)}, "use fit: gradient"),
        ({"vocabulary_size": 9, "fit": "least_squares"}, "use fit: gradient"),
        ({"features": 2, "window": 0}, "greater than or equal to 1"),
        ({"features": 2, "hidden_sizes": (0,)}, "greater than 0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(options: dict[str, Any], part: str) -> None:
    """The message names the setting and what to do."""
    with pytest.raises(ValidationError, match=part):
        build(**options)


@torch.inference_mode()
def test_a_prompt_costs_one_window() -> None:
    """What the head reads is the window alone, so that the graph computes one for a prompt of any length."""
    module, spec = build(**SHAPES["tokens, layers"])
    items = random_items(spec, 1, 9)

    hidden, (window,) = module(items, torch.tensor([9]), zero_state(spec, 1, 0))

    assert np.array_equal(hidden[0, -1], window[0])
    assert (items[0, -4:] + 1).tolist() == window[0].tolist()
