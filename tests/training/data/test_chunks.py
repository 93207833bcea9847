from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from statewise.errors import ConfigError
from statewise_training.data.chunks import Chunks, InOrder, Rounds, TrainingStream, split


def text_of(documents: list) -> str:
    return "".join(document.body for document in documents)


def test_many_documents_are_held_out_whole() -> None:
    """Of twenty documents or more, some are held out, no more than asked, and none is cut."""
    bodies = [f"{index:02d}" * 50 for index in range(40)]

    train, held_out = split(bodies, 0.2, seed=3)

    assert sorted(bodies) == sorted(document.body for document in train + held_out)
    assert 0.15 < len(held_out) / len(bodies) <= 0.2
    assert all(document.has_start and document.has_end for document in train + held_out)


def test_the_split_follows_its_seed_alone() -> None:
    """One seed always holds out the same documents, another one others."""
    bodies = [f"{index:02d}" * 50 for index in range(40)]

    assert split(bodies, 0.2, seed=3) == split(bodies, 0.2, seed=3)
    assert split(bodies, 0.2, seed=3) != split(bodies, 0.2, seed=4)


def test_of_few_documents_the_ends_are_held_out() -> None:
    """The end of each document is held out; start and end of the document stay with their part."""
    train, held_out = split(["abcdefghij", "klmnopqrst"], 0.3, seed=0)

    assert (text_of(train), text_of(held_out)) == ("abcdefgklmnopq", "hijrst")
    assert all(document.has_start and not document.has_end for document in train)
    assert all(document.has_end and not document.has_start for document in held_out)


@pytest.mark.parametrize("bodies", [["ab"], ["a"], ["a"] * 30])
def test_too_little_data_is_refused(bodies: list[str]) -> None:
    """Where one side of the split would have nothing to predict, the key and the number of items are told."""
    with pytest.raises(ConfigError, match=rf"data.held_out: 0.1 of {len(''.join(bodies))} items"):
        split(bodies, 0.1, seed=0)


@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=6),
    sequence_length=st.integers(1, 12),
    batch_size=st.integers(1, 5),
)
@settings(max_examples=100, deadline=None)
def test_every_item_but_the_first_of_a_document_is_predicted_once(
    lengths: list[int], sequence_length: int, batch_size: int
) -> None:
    """Whatever the lengths, the chunks hold each pair of neighbours once, none across documents, and blank padding."""
    offsets = np.cumsum([1, *lengths])
    documents = [np.arange(a, b, dtype=np.int32) for a, b in pairwise(offsets)]
    chunks = Chunks(documents, sequence_length)
    targets: list[int] = []

    for batch in InOrder(chunks, batch_size):
        assert torch.equal(batch.targets[batch.mask], batch.items[batch.mask] + 1)
        assert not batch.items[~batch.mask].any()
        assert not batch.targets[~batch.mask].any()
        targets += batch.targets[batch.mask].tolist()

    assert [int(item) for document in documents for item in document[1:]] == sorted(targets)
    assert len(targets) == chunks.num_predictions


def test_series_keep_their_features() -> None:
    """Real vectors come as [row, time, features], padded with zeros."""
    series = np.arange(10, dtype=np.float32).reshape(5, 2) + 1
    batch = Chunks([series], 3).batch(torch.tensor([1, 0]))

    assert batch.items[0].tolist() == [[7, 8], [0, 0], [0, 0]]
    assert batch.targets[0].tolist() == [[9, 10], [0, 0], [0, 0]]
    assert batch.mask.tolist() == [[True, False, False], [True, True, True]]


def stream(**changes: int) -> TrainingStream:
    chunks = Chunks([np.arange(100, dtype=np.int32)], 10)
    return TrainingStream(chunks, **{"batch_size": 3, "seed": 1, **changes})


def firsts(batches: list) -> list[int]:
    return [int(row) for batch in batches for row in batch.items[:, 0]]


def test_each_chunk_comes_once_per_epoch_in_another_order() -> None:
    """Batches are full across the border of two epochs, and each epoch has every chunk once."""
    seen = firsts([stream().batch(step) for step in range(10)])
    epochs = [seen[start : start + 10] for start in (0, 10, 20)]

    assert len(seen) == 30
    assert all(sorted(epoch) == list(range(0, 100, 10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_devices_share_an_epoch_without_overlap() -> None:
    """Two devices together see what one with their joint batch size sees."""
    alone = stream(batch_size=6)
    pair = [stream(rank=rank, world_size=2) for rank in range(2)]

    for step in range(5):
        assert firsts([alone.batch(step)]) == firsts([part.batch(step) for part in pair])


def test_a_round_goes_on_from_the_current_step() -> None:
    """One pass gives the batches from the current step to the round's end, and no more than the run has."""
    now = iter((0, 4, 8))
    rounds = Rounds(stream(), steps_per_round=4, num_steps=10, current_step=lambda: next(now))
    passes = [firsts(list(rounds)) for _ in range(rounds.num_rounds)]

    assert [len(batches) for batches in passes] == [12, 12, 6]
    assert [row for batches in passes for row in batches] == firsts([stream().batch(step) for step in range(10)])
