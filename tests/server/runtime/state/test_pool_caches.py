"""Caches in the pool."""

from __future__ import annotations

import numpy as np

from statewise_server.runtime.state.pool import StatePool
from tests.server.runtime.state.test_pool import CACHE, CAPACITY, MAX_ROWS, SPECS


def test_a_cache_is_read_and_written_in_one_place() -> None:
    """Past and present of a cache are the same memory; other state has two buffers."""
    pool = StatePool((*SPECS, CACHE), MAX_ROWS, CAPACITY)

    past, present = pool.buffers("key")
    before, after = pool.buffers("hidden")

    assert past is present
    assert not np.shares_memory(before, after)


def test_a_saved_cache_holds_the_filled_positions_only() -> None:
    """Saving a short sequence does not copy the room for a long one."""
    pool = StatePool((CACHE,), MAX_ROWS, CAPACITY)
    pool.commit(slice(0, 1), 1, 5)

    assert pool.save_row(0).tensors["key"].shape == (2, 5, 3)


def test_a_row_may_be_saved_and_loaded_piece_by_piece() -> None:
    """Pieces of a cache, each from where the one before ended, put together the row; the last one's state counts."""
    pool = StatePool((*SPECS, CACHE), MAX_ROWS, CAPACITY)
    pieces = []
    for number, (start, end) in enumerate(((0, 3), (3, 5)), start=1):
        pool.caches["key"][1, :, start:end] = number
        pool.next["hidden"][1] = number
        pool.commit(slice(1, 2), 3, end - start)
        pieces.append(pool.save_row(1, start))
    for piece in pieces:
        pool.load_row(0, piece)

    assert pieces[1].tensors["key"].shape == (2, 2, 3)
    assert pool.caches["key"][0, 0, :5, 0].tolist() == [1, 1, 1, 2, 2]
    assert (pool.num_filled[0], pool.current["hidden"][0, 0]) == (5, 2)
