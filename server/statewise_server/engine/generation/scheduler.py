"""Assigns rows to sequences and plans the next run. The scheduler owns every change of a sequence's row."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import accumulate

from statewise_server.engine.generation.beams import Beam
from statewise_server.engine.generation.prefix_cache import PrefixCache
from statewise_server.engine.generation.sequence import Sequence
from statewise_server.engine.generation.state_memory import StateMemory
from statewise_server.engine.settings import EngineSettings
from statewise_server.runtime.steps.runner import Runner


@dataclass(frozen=True, slots=True)
class Plan:
    """One step: decode all decoding rows, then prefill some of the rows behind them."""

    num_decoding: int
    num_decode_steps: int
    """Items per decoding row."""
    chunk_lengths: tuple[int, ...]
    """Prompt items of each prefilling row, from row `num_decoding` on."""
    is_mixed: bool = False
    """Whether the first of these chunks goes into the run that decodes."""


class Scheduler:
    """Rows 0..num_decoding-1 decode, the rows behind them prefill; who leaves is replaced by the last of its kind."""

    def __init__(self, runner: Runner, settings: EngineSettings, memory: StateMemory, prefixes: PrefixCache) -> None:
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        """By row."""
        self.num_decoding = 0
        self._runner = runner
        self._settings = settings
        self._memory = memory
        self._prefixes = prefixes

    def num_free(self, *others: Sequence) -> int:
        """Rows that are free for sequences as long as the longest of those that run and `others`."""
        return max(0, self._memory.rows_at(self._capacity(*others)) - self._num_taken)

    def num_left_waiting(self, *others: Sequence) -> int:
        """Count the waiting sequences, and the `others` behind them, that find no row now."""
        waiting = [*self.waiting, *others]
        taken = accumulate(sequence.num_rows for sequence in waiting)
        num_free = self.num_free(*waiting)
        return sum(num_rows > num_free for num_rows in taken)

    def admit(self) -> list[Sequence]:
        """Give free rows to waiting sequences, first come first served; `prepare` them then.

        A beam search gets the rows of all its beams at once, so that none waits for what another holds.
        """
        admitted = []
        while self.waiting and self.num_free(self.waiting[0]) >= self.waiting[0].num_rows:
            sequence = self.waiting.popleft()
            sequence.row = len(self.running)
            self.running.append(sequence)
            admitted.append(sequence)
        return admitted

    def prepare(self, admitted: list[Sequence]) -> None:
        """Give the sequences admitted last a state to begin from; the pool is resized where it must be."""
        if not admitted:
            return
        self._make_room(len(self.running) - len(admitted))
        for sequence in admitted:
            self._runner.pool.clear_row(sequence.row)
            if sequence.request.start is None:
                self._prefixes.load(sequence, self._runner.pool)
            else:
                sequence.begin_after(sequence.request.start, self._runner.pool)
            self._runner.sampler.set(sequence.row, sequence.request.sampling, sequence.num_top)

    def plan(self, step_seconds: float) -> Plan | None:
        """Plan the next run, None if there is nothing to run; `step_seconds`: recent duration of one decode step."""
        if not self.running:
            return None
        decoding, prefilling = self.running[: self.num_decoding], self.running[self.num_decoding :]
        budget = self._settings.token_budget
        chunks: list[int] = []
        for sequence in prefilling:
            # Always a whole chunk: attention rounds by a chunk's length, which must not depend on the company.
            chunk = min(sequence.num_prompt_left, self._settings.prefill_chunk)
            # A source is read whole, so no step reads more than the budget, or one source and one chunk.
            num_items = chunk + sequence.num_source_left
            if num_items > budget and chunks:
                break
            chunks.append(chunk)
            budget -= num_items
        num_decode_steps = self._num_decode_steps(decoding, step_seconds)
        is_mixed = bool(self._runner.can_mix and decoding and chunks and num_decode_steps == 1)
        return Plan(self.num_decoding, num_decode_steps, tuple(chunks), is_mixed)

    def start_decoding(self, sequence: Sequence) -> None:
        """The prompt is in the state: move the sequence among the decoding rows."""
        self._swap(sequence, self.running[self.num_decoding])
        self.num_decoding += 1

    def follow(self, beam: Beam) -> None:
        """Give the beams of a search the state that each goes on from."""
        moves = beam.take_moves()
        for source, target in moves.copies:
            is_new = target.row < 0
            if is_new:
                self._open_row(target)
            # All beams of a search read the same source.
            self._runner.copy_row(source.row, target.row, with_memory=is_new)
        for dropped in moves.dropped:
            self._free_row(dropped)

    def release(self, sequence: Sequence) -> None:
        """Free the sequence's row, and those of all that serve its request; a second release does nothing."""
        for member in sequence.members:
            self._free_row(member)

    def _open_row(self, sequence: Sequence) -> None:
        """Give the sequence the row behind those that decode; the one that prefills there moves to the end."""
        self.running.append(sequence)
        sequence.row = self._fill(len(self.running) - 1, self.num_decoding)
        self.running[sequence.row] = sequence
        self.num_decoding += 1

    def _free_row(self, sequence: Sequence) -> None:
        if sequence.row < 0:
            return
        hole = sequence.row
        if hole < self.num_decoding:
            self.num_decoding -= 1
            hole = self._fill(hole, self.num_decoding)
        self._fill(hole, len(self.running) - 1)
        self.running.pop()
        sequence.row = -1

    def free_all(self) -> list[Sequence]:
        """Free all rows without moving any, for when no row can be moved; returns who had them."""
        freed, self.running, self.num_decoding = self.running, [], 0
        for sequence in freed:
            sequence.row = -1
        return freed

    @property
    def _num_taken(self) -> int:
        """Rows that are in use, or kept for beams."""
        return sum(sequence.num_rows for sequence in self.running)

    def _capacity(self, *others: Sequence) -> int:
        longest = max((sequence.num_positions for sequence in (*self.running, *others)), default=0)
        return self._memory.capacity_for(longest)

    def _make_room(self, num_in_use: int) -> None:
        """Grow the pool where it must be; shrink it where no row is in use, or where that is what gives enough rows."""
        pool, capacity = self._runner.pool, self._capacity()
        if not num_in_use or capacity > pool.capacity or self._num_taken > pool.num_rows:
            pool.resize(self._memory.rows_at(capacity), capacity, num_in_use)

    def _num_decode_steps(self, decoding: list[Sequence], step_seconds: float) -> int:
        if not decoding or not self._runner.can_decode_many or any(s.is_stepwise for s in decoding):
            return 1
        fitting = int(self._settings.decode_ms / 1000 / step_seconds) if step_seconds > 0 else 1
        # With others waiting, the first row to finish is wanted back at once; else the last one sets the end.
        left = [sequence.num_left for sequence in decoding]
        useful = min(left) if self.waiting else max(left)
        return max(1, min(fitting, useful, self._settings.max_decode_steps))

    def _fill(self, hole: int, row: int) -> int:
        """Move the sequence at `row` into the hole; returns the hole that it leaves."""
        if row != hole:
            self._runner.copy_row(row, hole)
            self.running[hole] = self.running[row]
            self.running[hole].row = hole
        return row

    def _swap(self, one: Sequence, other: Sequence) -> None:
        if one is other:
            return
        self._runner.swap_rows(one.row, other.row)
        one.row, other.row = other.row, one.row
        self.running[one.row], self.running[other.row] = one, other
