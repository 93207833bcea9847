"""Runs graphs over rows of a state pool, and keeps what they bind from run to run."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from numpy.typing import NDArray

from statewise.model.graph_io import STEPS, state_input, state_output
from statewise.model.sampling_inputs import NUM_TOP
from statewise_server.runtime.ort.onnx import onnxruntime
from statewise_server.runtime.state.memory import HOST, bind
from statewise_server.runtime.state.pool import StatePool
from statewise_server.runtime.steps.bound_run import BoundRun

Array = NDArray[Any]

MAX_BINDINGS = 256
"""Bindings that are kept: about two for each number of rows, and for each row that is fed alone."""


class StateRuns:
    """A binding has the state of its rows: caches stay in their place, recurrent state has two of them."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, BoundRun] = {}
        self._kept_of: tuple[StatePool, int] | None = None

    def run(
        self,
        pool: StatePool,
        session: onnxruntime.InferenceSession,
        parts: dict[str, slice],
        inputs: dict[str, Array],
        wanted: list[str],
    ) -> list[Array]:
        """Run a graph; `parts` are the rows whose state it reads and writes, by the prefix of the state's names."""
        places = ((prefix, rows.start, rows.stop) for prefix, rows in parts.items())
        key = (session, len(wanted), pool.is_swapped, *places)
        bound = self.kept(pool, key, lambda: bound_to(pool, session, parts, wanted))
        return bound.run(inputs, (int(inputs.get(STEPS, 1)), int(inputs.get(NUM_TOP, 0))))

    def kept(self, pool: StatePool, key: Hashable, make: Callable[[], BoundRun]) -> BoundRun:
        """The binding of this key, made where there is none since the pool's last resize."""
        if self._kept_of != (pool, pool.num_resizes) or len(self._kept) == MAX_BINDINGS:
            self._kept.clear()
            self._kept_of = (pool, pool.num_resizes)
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]


def bound_to(
    pool: StatePool, session: onnxruntime.InferenceSession, parts: dict[str, slice], wanted: list[str]
) -> BoundRun:
    """A binding of a graph to the state of these rows."""
    bound = BoundRun(session, wanted, keeps=pool.memory is HOST)
    for spec in pool.specs:
        current, new = pool.buffers(spec.name)
        for prefix, rows in parts.items():
            bind(bound.binding.bind_input, state_input(spec.name, prefix), pool.memory.view(current, rows))
            if new is not None:
                bind(bound.binding.bind_output, state_output(spec.name, prefix), pool.memory.view(new, rows))
    return bound
