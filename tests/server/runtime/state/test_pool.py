"""Rows of the state pool against a list of plain values, in host memory and by the path that a device takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from statewise.model.spec import StateSpec
from statewise_server.runtime.state.device import DeviceBuffer, DeviceMemory
from statewise_server.runtime.state.memory import HOST, Memory
from statewise_server.runtime.state.pool import StatePool, bytes_per_row, capacity_for

MAX_ROWS = 5
CAPACITY = 8
SPECS = (
    StateSpec(name="hidden", shape=("row", 3)),
    StateSpec(name="window", shape=("row", 2, 2), dtype="int64"),
    StateSpec(name="position", shape=("row",), dtype="int64"),
)
MEMORIES = {"host": HOST, "device": DeviceMemory("cpu")}
"""ONNX Runtime's memory on the CPU is moved by the same graphs and bindings as its memory on a GPU."""
CACHE = StateSpec(name="key", kind="cache", shape=("row", 2, "position", 3))

rows = st.integers(0, MAX_ROWS - 1)


def numpy_view(buffer: Any) -> np.ndarray:
    """The buffer's own memory, to look at and to write to as a run does."""
    return buffer.value.numpy() if isinstance(buffer, DeviceBuffer) else buffer


class PoolMachine(RuleBasedStateMachine):
    """Any sequence of runs, row operations and resizes leaves in each row what a plain list would hold.

    A run writes a new number to each of its rows: over whatever the other buffer held, and behind what the cache holds.
    """

    memory: Memory = HOST

    def __init__(self) -> None:
        super().__init__()
        self.pool = StatePool((*SPECS, CACHE), MAX_ROWS, CAPACITY, self.memory)
        self.expected: list[list[int]] = [[] for _ in range(MAX_ROWS)]
        self.in_use = 1
        self.counter = 0
        self.saved: list[tuple[Any, list[int]]] = []

    def make_room(self, num_positions: int) -> None:
        if num_positions > self.pool.capacity:
            self.pool.resize(self.pool.num_rows, num_positions, self.in_use)

    def run_rows(self, start: int, stop: int) -> None:
        self.make_room(1 + max(map(len, self.expected[start:stop])))
        for row in range(start, stop):
            self.counter += 1
            numpy_view(self.pool.caches["key"])[row, :, len(self.expected[row])] = self.counter
            self.expected[row] = [*self.expected[row], self.counter]
            for buffer in self.pool.next.values():
                numpy_view(buffer)[row] = self.counter
        self.pool.commit(slice(start, stop), self.in_use, 1)

    @rule(num_rows=rows, room=st.integers(0, CAPACITY))
    def resize(self, num_rows: int, room: int) -> None:
        longest = max(map(len, self.expected[: self.in_use]))
        self.pool.resize(max(num_rows, self.in_use), longest + room, self.in_use)

    @precondition(lambda self: self.in_use < self.pool.num_rows)
    @rule()
    def join(self) -> None:
        self.pool.clear_row(self.in_use)
        self.expected[self.in_use] = []
        self.in_use += 1

    @precondition(lambda self: self.in_use > 1)
    @rule(row=rows)
    def leave(self, row: int) -> None:
        self.in_use -= 1
        row %= self.in_use + 1
        self.pool.copy_row(self.in_use, row)
        self.expected[row] = self.expected[self.in_use]

    @rule()
    def run_all(self) -> None:
        self.run_rows(0, self.in_use)

    @rule(start=rows, count=rows)
    def run_some(self, start: int, count: int) -> None:
        start %= self.in_use
        self.run_rows(start, min(start + count + 1, self.in_use))

    @rule(source=rows, other=rows)
    def copy(self, source: int, other: int) -> None:
        source, other = source % self.in_use, other % self.in_use
        self.pool.copy_row(source, other)
        self.expected[other] = self.expected[source]

    @rule(row=rows)
    def save(self, row: int) -> None:
        self.saved.append((self.pool.save_row(row % self.in_use), self.expected[row % self.in_use]))

    @precondition(lambda self: self.saved)
    @rule(row=rows, which=st.integers(0, 99))
    def load(self, row: int, which: int) -> None:
        saved, value = self.saved[which % len(self.saved)]
        self.make_room(len(value))
        self.pool.load_row(row % self.in_use, saved)
        self.expected[row % self.in_use] = value

    @invariant()
    def rows_hold_what_they_should(self) -> None:
        for row in range(self.in_use):
            history = self.expected[row]
            for buffer in self.pool.current.values():
                assert (numpy_view(buffer)[row] == (history[-1] if history else 0)).all()
            assert self.pool.num_filled[row] == len(history)
            assert (numpy_view(self.pool.caches["key"])[row, :, : len(history)] == np.array(history)[:, None]).all()


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


class DevicePoolMachine(PoolMachine):
    """The same in a device's memory."""

    memory = MEMORIES["device"]


TestDevicePool = DevicePoolMachine.TestCase
TestDevicePool.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


@pytest.fixture(params=MEMORIES)
def memory(request: pytest.FixtureRequest) -> Memory:
    return MEMORIES[request.param]


def test_a_run_over_all_rows_swaps_the_buffers(memory: Memory) -> None:
    """When every row in use was run, nothing is copied: the two buffers change places."""
    pool = StatePool(SPECS, MAX_ROWS, memory=memory)
    current, after = pool.current, pool.next

    pool.commit(slice(0, 3), 3, 1)

    assert pool.current is after
    assert pool.next is current


def test_a_run_over_some_rows_copies_them_back(memory: Memory) -> None:
    """When other rows were not run, the buffer that holds their state stays the current one."""
    pool = StatePool(SPECS, MAX_ROWS, memory=memory)
    current = pool.current
    numpy_view(current["hidden"])[0] = 7
    numpy_view(pool.next["hidden"])[1:3] = 8

    pool.commit(slice(1, 3), 4, 1)

    assert pool.current is current
    assert numpy_view(pool.current["hidden"])[:, 0].tolist() == [7, 8, 8, 0, 0]


def test_a_batch_is_a_view(memory: Memory) -> None:
    """Rows of a buffer lie together in memory, so a run reads and writes them in place."""
    pool = StatePool(SPECS, MAX_ROWS, memory=memory)
    window = pool.current["window"]

    view = pool.memory.view(window, slice(1, 4))

    assert view.pointer == numpy_view(window)[1:].ctypes.data
    assert (tuple(view.shape), view.dtype) == ((3, 2, 2), np.int64)


def test_a_saved_row_does_not_change_with_the_pool(memory: Memory) -> None:
    """What save_row gave is a copy: later runs do not reach it."""
    pool = StatePool(SPECS, MAX_ROWS, memory=memory)
    numpy_view(pool.current["hidden"])[2] = 5
    saved = pool.save_row(2)

    pool.clear_row(2)

    assert saved.tensors["hidden"].tolist() == [5, 5, 5]
    assert numpy_view(pool.current["hidden"])[2].tolist() == [0, 0, 0]


def test_the_bytes_of_a_row_are_counted(memory: Memory) -> None:
    """Recurrent state counts twice, as it has two buffers, and a cache once, with all its positions."""
    assert bytes_per_row(SPECS, 0) == 2 * (3 * 4 + 5 * 8)
    assert bytes_per_row((CACHE,), 64) == 2 * 64 * 3 * 4
    assert StatePool((*SPECS, CACHE), MAX_ROWS, 64, memory).nbytes == MAX_ROWS * bytes_per_row((*SPECS, CACHE), 64)


def test_a_memory_moves_with_its_row_and_no_run_changes_it(memory: Memory) -> None:
    """Copied, saved, loaded and resized like all state, but for a copy that is told to leave it; it has one buffer."""
    spec = StateSpec(name="source", kind="memory", shape=("row", 4, 3))
    pool = StatePool((SPECS[0], spec), MAX_ROWS, memory=memory)
    numpy_view(pool.memories["source"])[:] = np.arange(MAX_ROWS)[:, None, None]
    numpy_view(pool.current["hidden"])[:] = np.arange(MAX_ROWS)[:, None]

    pool.commit(slice(0, MAX_ROWS), MAX_ROWS, 1)
    pool.commit(slice(0, MAX_ROWS), MAX_ROWS, 1)
    pool.copy_row(1, 0)
    pool.copy_row(2, 1, with_memory=False)
    pool.load_row(2, pool.save_row(3))
    pool.resize(3, 0, 3)

    assert numpy_view(pool.memories["source"])[:, 3, 2].tolist() == [1, 1, 3]
    assert numpy_view(pool.current["hidden"])[:, 0].tolist() == [1, 2, 3]
    assert pool.buffers("source")[1] is None
    assert bytes_per_row((spec,), 64) == 4 * 3 * 4


def test_capacities_are_buckets_up_to_the_most_positions() -> None:
    """Room doubles from 64 on, and ends at the model's own number; without positions there is none."""
    assert [capacity_for(count, 400) for count in (1, 64, 65, 256, 257, 400)] == [64, 64, 128, 256, 400, 400]
    assert (capacity_for(10, 50), capacity_for(10, 0)) == (50, 0)


def test_a_resize_that_breaks_off_is_done_again(monkeypatch: pytest.MonkeyPatch, memory: Memory) -> None:
    """Where memory runs out between two tensors, the pool does not pass for one of the old or the new size."""
    pool = StatePool((*SPECS, CACHE), MAX_ROWS, CAPACITY, memory)
    with monkeypatch.context() as patch:
        patch.setattr(pool, "_moved", lambda *_: [][0])
        with pytest.raises(IndexError):
            pool.resize(2, 16, 0)

    pool.resize(MAX_ROWS, CAPACITY, 0)

    shapes = {name: pool.buffers(name)[0].shape for name in ("hidden", "key")}
    assert shapes == {"hidden": (MAX_ROWS, 3), "key": (MAX_ROWS, 2, CAPACITY, 3)}


def test_what_lies_behind_a_row_does_not_survive_a_resize(memory: Memory) -> None:
    """NaN behind the filled positions is left behind, for runs that read there."""
    pool = StatePool((CACHE,), 2, 8, memory, reads_ahead=True)
    numpy_view(pool.caches["key"])[0, :, 3:] = np.nan
    pool.num_filled[0] = 3

    pool.resize(3, 16, 1)

    assert np.isfinite(numpy_view(pool.caches["key"])).all()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_row_moves_between_memories(dtype: Any) -> None:
    """A row saved on a device is loaded on the host, and back, to the bit: the saved form is the same."""
    specs = (StateSpec(name="hidden", shape=("row", 3), dtype=dtype), CACHE.model_copy(update={"dtype": dtype}))
    pools = [StatePool(specs, 2, 8, memory) for memory in MEMORIES.values()]
    rng = np.random.default_rng(1)
    numpy_view(pools[1].current["hidden"])[1] = rng.standard_normal(3)
    numpy_view(pools[1].caches["key"])[1] = rng.standard_normal((2, 8, 3))
    pools[1].num_filled[1] = 5

    saved = pools[1].save_row(1)
    pools[0].load_row(0, saved)
    pools[1].load_row(0, pools[0].save_row(0))

    assert saved.tensors["key"].shape == (2, 5, 3)
    for pool in pools:
        assert pool.num_filled[0] == 5
        again = pool.save_row(0)
        assert all(again.tensors[name].tobytes() == saved.tensors[name].tobytes() for name in saved.tensors)
    assert (numpy_view(pools[1].caches["key"])[0, :, 5:] == 0).all()
