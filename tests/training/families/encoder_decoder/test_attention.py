"""Attention to a source, held against torch.nn and against the formulas of the papers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from statewise_training.families.encoder_decoder.cells import step_stack
from statewise_training.families.shared.masks import real_items
from statewise_training.families.shared.state import encoded_state
from statewise_training.families.transformer.whole import masked_attention
from tests.training.families.encoder_decoder.models import MAX_SOURCE, VOCABULARY, make

LENGTHS = torch.tensor([3, MAX_SOURCE])


def test_masked_attention_is_that_of_torch() -> None:
    """With the projections of nn.MultiheadAttention and its key padding mask."""
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(32, 4, batch_first=True).requires_grad_(False)
    query, source, mask = torch.randn(2, 5, 32), torch.randn(2, 9, 32), real_items(LENGTHS, 9)
    expected, _ = attention(query, source, source, key_padding_mask=~mask)

    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    q, k, v = (
        nn.functional.linear(rows, weights[part], biases[part]).unflatten(2, (4, 8))
        for part, rows in enumerate((query, source, source))
    )
    attended = masked_attention(q, k.transpose(1, 2), v.transpose(1, 2), mask)

    torch.testing.assert_close(attention.out_proj(attended.flatten(2)), expected, rtol=1e-4, atol=1e-6)


def test_groups_of_heads_share_keys_and_values() -> None:
    """Two key heads for four query heads give what four heads with each of the two twice give."""
    torch.manual_seed(0)
    query, keys, values = torch.randn(2, 5, 4, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
    mask = real_items(LENGTHS, 9)

    shared = masked_attention(query, keys, values, mask)

    twice = (part.repeat_interleave(2, 1) for part in (keys, values))
    torch.testing.assert_close(shared, masked_attention(query, *twice, mask), rtol=1e-5, atol=1e-6)


def test_an_empty_source_gives_numbers() -> None:
    """Rows that nothing runs in are computed all the same, beside those that something runs in."""
    attended = masked_attention(
        torch.randn(1, 1, 2, 8),
        torch.zeros(1, 2, 4, 8),
        torch.zeros(1, 2, 4, 8),
        real_items(torch.tensor([0]), 4),
    )

    assert torch.equal(attended, torch.zeros_like(attended))


def test_luong_attention_by_the_formula() -> None:
    """softmax(h W s) over the items of the source alone, and tanh(W [context; h]), for each row and step."""
    module, spec = make("lstm-luong", num_layers=1)
    decoder = module.decoder
    source, items = (torch.randint(0, VOCABULARY, (2, length)) for length in (MAX_SOURCE, 4))
    state = encoded_state(module, spec, source, LENGTHS, 4)

    actual, _ = module(items, torch.full((2,), 4), state)

    hidden, _ = decoder.rnn(decoder.embedding(items), (state[0][None], state[1][None]))
    for row, length in enumerate(LENGTHS.tolist()):
        memory = state[2][row, :length]
        for step, h in enumerate(hidden[row]):
            context = torch.softmax(h @ decoder.query.weight.T @ memory.T, 0) @ memory
            expected = torch.tanh(decoder.combine.weight @ torch.cat([context, h]))
            torch.testing.assert_close(actual[row, step], expected, rtol=1e-4, atol=1e-6)


def test_bahdanau_attention_by_the_formula() -> None:
    """V tanh(W h + U s) with the hidden vector before the step, whose input the context is part of."""
    module, spec = make("gru-bahdanau", num_layers=1)
    decoder = module.decoder
    source, items = (torch.randint(0, VOCABULARY, (2, length)) for length in (MAX_SOURCE, 4))
    state = encoded_state(module, spec, source, LENGTHS, 4)

    actual, _ = module(items, torch.full((2,), 4), state)

    for row, length in enumerate(LENGTHS.tolist()):
        h, memory = state[0][row], state[2][row, :length]
        for step, item in enumerate(decoder.embedding(items[row])):
            energies = torch.tanh(decoder.query(h) + memory @ decoder.key.weight.T) @ decoder.score.weight[0]
            context = torch.softmax(energies, 0) @ memory
            h = decoder.rnn(torch.cat([item, context])[None], h[None])[1][0]
            expected = torch.tanh(decoder.combine.weight @ torch.cat([context, h]))
            torch.testing.assert_close(actual[row, step], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_one_step_of_a_stack_is_that_of_torch(kind: type[nn.RNNBase]) -> None:
    """For two layers, from a state that is not zero."""
    torch.manual_seed(0)
    rnn = kind(5, 6, 2, batch_first=True).requires_grad_(False)
    inputs, parts = torch.randn(3, 5), 2 if kind is nn.LSTM else 1
    state = tuple(torch.randn(3, 6) for _ in range(2 * parts))
    stacked = tuple(torch.stack(state[part::parts]) for part in range(parts))
    hidden, last = rnn(inputs[:, None], stacked if parts == 2 else stacked[0])

    actual, new_state = step_stack(rnn, inputs, state)

    torch.testing.assert_close(actual, hidden[:, 0])
    for part, expected in enumerate(last if parts == 2 else (last,)):
        torch.testing.assert_close(torch.stack(new_state[part::parts]), expected)


def test_the_encoder_starts_the_decoder_with_both_of_its_ends() -> None:
    """Each layer's state is the forward direction's last vector beside the backward direction's, as torch.nn gives."""
    module, spec = make("gru-none", num_layers=1)
    source = torch.randint(0, VOCABULARY, (1, 5))
    layer = module.encoder.layers[0]

    (state,) = encoded_state(module, spec, source, torch.tensor([5]), 1)

    _, last = layer(module.encoder.embedding(source))
    torch.testing.assert_close(state, torch.cat([last[0], last[1]], 1))
