"""What holds for every encoder-decoder."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from statewise.errors import ConfigError
from statewise.model.spec import TokenInput
from statewise.plugins import DataSpec, load_plugin
from statewise_training.data.chunks import Batch
from statewise_training.families.shared.state import encoded_state
from statewise_training.run.module import run_batch
from tests.training.families.encoder_decoder.models import KINDS, MAX_SOURCE, VOCABULARY, make

LENGTHS = torch.tensor([1, 7, MAX_SOURCE, 4])
SOURCE = torch.randint(0, VOCABULARY, (4, MAX_SOURCE), generator=torch.Generator().manual_seed(1))
ITEMS = torch.randint(0, VOCABULARY, (4, 6), generator=torch.Generator().manual_seed(2))
RAGGED = torch.tensor([6, 0, 3, 1])


def lengths_of(rows: Tensor) -> Tensor:
    return torch.full((len(rows),), rows.shape[1])


@pytest.mark.parametrize("kind", KINDS)
def test_teacher_forcing_equals_decoding_step_by_step(kind: str) -> None:
    """The outputs over whole targets are those of one item at a time, from the state of the encoded sources."""
    module, spec = make(kind)
    whole = run_batch(module, spec, Batch(ITEMS, ITEMS, torch.ones_like(ITEMS, dtype=torch.bool), SOURCE, LENGTHS))

    state = encoded_state(module, spec, SOURCE, LENGTHS, ITEMS.shape[1] + 3)
    steps = []
    for item in ITEMS.split(1, dim=1):
        hidden, state = module(item, lengths_of(item), state)
        steps.append(module.head(hidden))

    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_has_the_shapes_that_it_is_described_with(kind: str) -> None:
    """Before the first step and after it; the memory is the same one."""
    module, spec = make(kind)
    first = encoded_state(module, spec, SOURCE[:, :7], LENGTHS.clamp(max=7), 6)

    _, then = module(ITEMS, RAGGED, first)

    for state, before, after in zip(spec.state, first, then, strict=True):
        assert before.shape == after.shape == (4, *state.row_shape(6, MAX_SOURCE))
        assert before.dtype == after.dtype == getattr(torch, state.dtype)
        assert state.kind != "memory" or torch.equal(before, after)


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_behind_a_source_changes_nothing(kind: str) -> None:
    """Neither other padding nor company: a row is what its own source makes it."""
    module, spec = make(kind)
    padded = torch.where(torch.arange(MAX_SOURCE) < LENGTHS[:, None], SOURCE, VOCABULARY - 1 - SOURCE)

    expected, _ = module(ITEMS, lengths_of(ITEMS), encoded_state(module, spec, SOURCE, LENGTHS, 6))
    other, _ = module(ITEMS, lengths_of(ITEMS), encoded_state(module, spec, padded, LENGTHS, 6))
    alone_state = encoded_state(module, spec, SOURCE[3:, :4], LENGTHS[3:], 6)
    alone, _ = module(ITEMS[3:], lengths_of(ITEMS[3:]), alone_state)

    torch.testing.assert_close(other, expected, rtol=0, atol=0)
    torch.testing.assert_close(alone, expected[3:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_source_matters(kind: str) -> None:
    """Another item of it changes the outputs of its row, and of no other."""
    module, spec = make(kind)
    changed = SOURCE.clone()
    changed[1, 2] = (changed[1, 2] + 1) % VOCABULARY

    outputs = [
        module(ITEMS, lengths_of(ITEMS), encoded_state(module, spec, s, LENGTHS, 6))[0] for s in (SOURCE, changed)
    ]

    differs = (outputs[0] != outputs[1]).flatten(1).any(1)
    assert differs.tolist() == [False, True, False, False]


@pytest.mark.parametrize("kind", KINDS)
def test_ragged_chunks_equal_rows_alone(kind: str) -> None:
    """A row of no items keeps its state; the others have what they have alone."""
    module, spec = make(kind)
    first = encoded_state(module, spec, SOURCE, LENGTHS, 8)

    hidden, then = module(ITEMS, RAGGED, first)

    for row, length in enumerate(RAGGED.tolist()):
        one = tuple(part[row : row + 1] for part in first)
        expected, state = module(ITEMS[row : row + 1, : max(length, 1)], RAGGED[row : row + 1], one)
        torch.testing.assert_close(hidden[row : row + 1, :length], expected[:, :length], rtol=1e-4, atol=1e-5)
        for mine, alone in zip(then, state, strict=True):
            torch.testing.assert_close(mine[row : row + 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["transformer", "lstm-luong", "gru-bahdanau"])
def test_sources_of_real_vectors(kind: str) -> None:
    """They are read without an embedding of tokens, and train."""
    module, spec = make(kind, source_features=3)
    module.requires_grad_(True).train()
    source = torch.randn(4, 5, 3)

    batch = Batch(ITEMS, ITEMS, torch.ones_like(ITEMS, dtype=torch.bool), source, LENGTHS.clamp(max=5))
    run_batch(module, spec, batch).sum().backward()

    assert spec.source is not None
    assert spec.source.kind == "real"
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize("kind", ["transformer", "lstm-luong", "gru-bahdanau", "gru-none"])
@pytest.mark.parametrize("dropout_kind", ["standard", "locked"])
def test_dropout_is_drawn_in_training_alone(kind: str, dropout_kind: str) -> None:
    """Two runs differ in training, and are one in evaluation."""
    options = {} if kind == "transformer" else {"dropout_kind": dropout_kind}
    module, spec = make(kind, dropout=0.5, **options)
    batch = Batch(ITEMS, ITEMS, torch.ones_like(ITEMS, dtype=torch.bool), SOURCE, LENGTHS)

    evaluated = [run_batch(module, spec, batch) for _ in range(2)]
    module.train()
    trained = [run_batch(module, spec, batch) for _ in range(2)]

    assert torch.equal(*evaluated)
    assert not torch.equal(*trained)


def test_label_smoothing_mixes_in_the_uniform_distribution() -> None:
    """The training loss is (1 - s) times the loss plus s times the mean over all tokens; validation has none of it."""
    plugin = load_plugin("gru_encoder_decoder")
    config = plugin.config_class(vocabulary_size=5, source_vocabulary_size=5, label_smoothing=0.2)
    logits, targets = torch.randn(2, 3, 5), torch.tensor([[0, 1, 2], [3, 4, 0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    surprise = -logits.log_softmax(-1)
    expected = (0.8 * surprise.gather(2, targets[..., None]).squeeze(2) + 0.2 * surprise.mean(2))[mask].mean()

    trained = plugin.training_loss(torch.nn.Identity(), config, Batch(targets, targets, mask), lambda _: logits)

    torch.testing.assert_close(trained, expected)
    plain = plugin.loss(config, logits, targets, mask)
    torch.testing.assert_close(plain, surprise.gather(2, targets[..., None]).squeeze(2)[mask].mean())


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"source_vocabulary_size": None}, "exactly one of source_vocabulary_size"),
        ({"source_features": 3}, "exactly one of source_vocabulary_size"),
        ({"source_vocabulary_size": 24}, "shared_embeddings needs one vocabulary, got 24 source tokens and 23"),
        ({"vocabulary_size": None, "features": 2, "label_smoothing": 0.1}, "label_smoothing needs targets of tokens"),
        ({"hidden_size": 31}, "hidden_size must be even"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(options: dict[str, int], part: str) -> None:
    """The message names the setting."""
    sizes = {"vocabulary_size": VOCABULARY, "source_vocabulary_size": VOCABULARY}

    with pytest.raises(ValueError, match=part):
        load_plugin("gru_encoder_decoder").config_class.model_validate(sizes | options)


def test_data_without_sources_is_refused() -> None:
    """The family says what it learns from."""
    plugin = load_plugin("lstm_encoder_decoder")

    with pytest.raises(ConfigError, match=r"lstm_encoder_decoder learns from pairs.*data\.kind pairs"):
        plugin.for_data({}, DataSpec(TokenInput(vocabulary_size=9)))
