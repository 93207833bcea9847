"""The budget of state memory of one engine, and the rows and positions that fit into it."""

from __future__ import annotations

from dataclasses import dataclass

from statewise.errors import BundleError, InvalidRequestError
from statewise.model.spec import ModelSpec, StateSpec
from statewise_server.engine.limits import Limits
from statewise_server.engine.settings import EngineSettings
from statewise_server.runtime.ort.free_memory import free_memory
from statewise_server.runtime.ort.providers import free_cuda_memory
from statewise_server.runtime.state.pool import bytes_per_row, capacity_for

SHARE_OF_FREE_MEMORY = 0.5
"""For the state of all models; the rest is for weights, activations and saved prefixes."""


def default_state_memory(device: str, num_models: int = 1) -> int:
    """Bytes of state for each of so many models, from what is free now where the state is to lie."""
    free = free_cuda_memory() if device == "cuda" else free_memory()
    return int(free * SHARE_OF_FREE_MEMORY) // num_models


@dataclass(frozen=True, slots=True)
class StateMemory:
    """Rows and positions under a budget: the more positions a row has, the fewer rows there are."""

    specs: tuple[StateSpec, ...]
    most_rows: int
    """Most rows, however short their requests are."""
    max_positions: int
    """Positions of the longest request; 0 where the state does not grow."""
    budget: int
    """Bytes."""

    @classmethod
    def of(cls, settings: EngineSettings, spec: ModelSpec, device: str = "cpu") -> StateMemory:
        """The memory of a model under these settings, on the device that its state is to lie on.

        Raises BundleError where the longest request does not fit even when it runs alone.
        """
        max_positions = Limits.of(settings, spec).max_positions if spec.has_caches else None
        budget = default_state_memory(device) if settings.state_memory is None else settings.state_memory
        memory = cls(spec.sized_state, settings.max_rows, max_positions or 0, budget)
        if not memory.rows_at(memory.max_positions):
            raise BundleError(memory._what_is_missing())
        return memory

    @property
    def max_rows(self) -> int:
        """Rows that there are while all requests are short."""
        return self.rows_at(self.capacity_for(1))

    @property
    def bytes_per_row(self) -> int:
        """Bytes of state of the longest request."""
        return bytes_per_row(self.specs, self.max_positions)

    def capacity_for(self, num_positions: int) -> int:
        """Positions per row that a pool gets for requests of so many."""
        return capacity_for(num_positions, self.max_positions)

    def rows_at(self, capacity: int) -> int:
        """Rows that fit where each has room for so many positions."""
        return min(self.most_rows, self.budget // bytes_per_row(self.specs, capacity))

    def check_beams(self, num_beams: int, num_positions: int) -> None:
        """Raise InvalidRequestError where so many rows never fit together."""
        num_rows = self.rows_at(self.capacity_for(num_positions))
        if num_beams > num_rows:
            raise InvalidRequestError(
                f"{num_beams} beams need as many rows of {num_positions} positions, and this server has room for "
                f"{num_rows}; ask for fewer beams, or for fewer items",
                field="num_beams",
            )

    def describe(self) -> str:
        """Rows, positions and bytes on one line, for the longest requests."""
        rows = self.rows_at(self.max_positions)
        positions = f" x {self.max_positions} positions" if self.max_positions else ""
        more = f" ({self.max_rows} rows for shorter requests)" if self.max_rows > rows else ""
        size = format_bytes(rows * self.bytes_per_row)
        return f"{rows} rows{positions}{more}, {size} state of {format_bytes(self.budget)} budget"

    def _what_is_missing(self) -> str:
        needed, fixed = self.bytes_per_row, bytes_per_row(self.specs, 0)
        fitting = (self.budget - fixed) * self.max_positions // (needed - fixed) if needed > fixed else 0
        request = f"a request of {self.max_positions} positions" if self.max_positions else "a request"
        shorter = f", or lower --max-positions to {fitting}" if fitting > 0 else ""
        return (
            f"{request} needs {format_bytes(needed)} of state, and the budget is {format_bytes(self.budget)}; "
            f"raise --state-memory to {needed} or more{shorter}"
        )


def format_bytes(count: int) -> str:
    """Three digits and a decimal unit: 604 MB."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}"
