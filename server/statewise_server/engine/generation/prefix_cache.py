"""The state after the beginnings of prompts that were read lately, for requests that begin alike.

Saved are whole prefill chunks only: attention rounds by a chunk's length, so a request that starts behind saved chunks
computes the rest as it would have without them, bit for bit. A chunk is known by its items and by the chunk before it.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from statewise.model.spec import ModelSpec
from statewise_server.engine.generation.sequence import ROOT, Sequence
from statewise_server.engine.generation.state_memory import StateMemory
from statewise_server.engine.settings import EngineSettings
from statewise_server.runtime.state.pool import SavedRow, StatePool, saved_bytes

SHARE_OF_STATE_MEMORY = 0.25
MOST_BY_DEFAULT = 2 * 2**30

_OVERHEAD = 512
_OVERHEAD_PER_TENSOR = 160
"""Bytes of Python's objects around the numbers, which outweigh them where the state is small."""


@dataclass(frozen=True, slots=True)
class _Chunk:
    parent: bytes
    state: SavedRow


class PrefixCache:
    """Saved chunks within a budget; the least recently used goes first, and none before those that follow it."""

    def __init__(self, memory: StateMemory, chunk_length: int, budget: int) -> None:
        overhead = _OVERHEAD + _OVERHEAD_PER_TENSOR * len(memory.specs)
        self.chunk_bytes = saved_bytes(memory.specs, chunk_length) + overhead
        self.max_chunks = budget // self.chunk_bytes
        self.num_evicted = 0
        self._chunk_length = chunk_length
        # The least recently used first. A chunk stands before its parent, so the first one has no children.
        self._chunks: OrderedDict[bytes, _Chunk] = OrderedDict()

    @classmethod
    def of(cls, settings: EngineSettings, memory: StateMemory, spec: ModelSpec) -> PrefixCache:
        """The cache of an engine under these settings.

        It keeps nothing of a model with a source: what two such requests share is not told by their prompts, which are
        short besides.
        """
        if spec.source is not None:
            return cls(memory, settings.prefill_chunk, 0)
        default = min(int(memory.budget * SHARE_OF_STATE_MEMORY), MOST_BY_DEFAULT)
        budget = default if settings.prefix_memory is None else settings.prefix_memory
        return cls(memory, settings.prefill_chunk, budget)

    @property
    def num_bytes(self) -> int:
        """Bytes in use."""
        return len(self._chunks) * self.chunk_bytes

    def load(self, sequence: Sequence, pool: StatePool) -> None:
        """Put the longest saved beginning of a prompt into the sequence's row, which is clear."""
        keys = self._longest_match(sequence.request.prompt)
        for key in keys:
            pool.load_row(sequence.row, self._chunks[key].state)
        if keys:
            sequence.prefix_key = keys[-1]
            self._touch(keys[-1])
        sequence.num_prefilled = sequence.stream.num_cached = len(keys) * self._chunk_length

    def save(self, sequence: Sequence, pool: StatePool) -> None:
        """Keep the state after the chunk that the sequence has just read, where it is a whole one and not there yet."""
        end, parent = sequence.num_prefilled, sequence.prefix_key
        if not self.max_chunks or parent is None or end % self._chunk_length:
            return
        start = end - self._chunk_length
        key = _key(parent, sequence.request.prompt[start:end])
        if key not in self._chunks:
            if not self._make_room(parent):
                sequence.prefix_key = None
                return
            self._chunks[key] = _Chunk(parent, pool.save_row(sequence.row, start))
        sequence.prefix_key = key
        self._touch(key)

    def _longest_match(self, prompt: NDArray[Any]) -> list[bytes]:
        """Keys of the saved chunks that the prompt begins with; its last item is left, for there to be an output."""
        keys: list[bytes] = []
        for end in range(self._chunk_length, len(prompt) if self._chunks else 0, self._chunk_length):
            key = _key(keys[-1] if keys else ROOT, prompt[end - self._chunk_length : end])
            if key not in self._chunks:
                break
            keys.append(key)
        return keys

    def _make_room(self, parent: bytes) -> bool:
        """Make room for one chunk behind `parent`; False if the parent was evicted, or only its ancestors are left."""
        if parent != ROOT and parent not in self._chunks:
            return False
        self._touch(parent)
        if len(self._chunks) < self.max_chunks:
            return True
        oldest = next(iter(self._chunks))
        if oldest == parent:
            return False
        del self._chunks[oldest]
        self.num_evicted += 1
        return True

    def _touch(self, key: bytes) -> None:
        """Make a chunk and those before it the most recently used, each after the one that follows it."""
        while key != ROOT:
            self._chunks.move_to_end(key)
            key = self._chunks[key].parent


def _key(parent: bytes, items: NDArray[Any]) -> bytes:
    # Cryptographic, as one client must not be able to make another's beginning look like its own.
    return hashlib.blake2b(parent + items.tobytes(), digest_size=32).digest()
