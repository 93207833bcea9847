import numpy as np
import pytest

from statewise_server.runtime.one_shot import bucket_of, pad_rows
from tests.small_encoders import sums_runner


@pytest.mark.parametrize(
    ("length", "max_positions", "width"),
    [(1, None, 16), (16, None, 16), (17, None, 32), (64, 512, 64), (65, 100, 100), (3, 10, 10), (1000, None, 1024)],
)
def test_a_width_is_a_power_of_two_up_to_the_models_limit(length: int, max_positions: int | None, width: int) -> None:
    """From 16 on widths double, and end at the model's own number of positions."""
    assert bucket_of(length, max_positions) == width


def test_rows_of_vectors_are_padded_behind() -> None:
    """Padding is zeros behind each sequence, and the lengths say how much is real."""
    items, lengths = pad_rows([np.ones((1, 2), np.float32), np.ones((3, 2), np.float32)], 4)

    assert items.shape == (2, 4, 2)
    assert items.sum(axis=(1, 2)).tolist() == [2, 6]
    assert items[0, 1:].sum() == 0
    assert lengths.tolist() == [1, 3]


def test_outputs_are_cut_to_each_sequence() -> None:
    """An output along time ends where its row ends; one per sequence is whole."""
    answers = sums_runner().run_rows([np.array([1, 2, 3]), np.array([5])], 16)

    assert [answer["output"].tolist() for answer in answers] == [[6, 60], [5, 50]]
    assert [answer["echo"].tolist() for answer in answers] == [[1, 2, 3], [5]]
