"""A step in two graphs, for a GPU: the model, captured as a CUDA graph where it decodes, and the choice of the items.

What the model puts out stays in the device's memory. A captured graph reads and writes fixed addresses and is launched
as one, so that a step of hundreds of operators costs the host one call.

What ONNX Runtime 1.31 does: a run with a new `gpu_graph_id` computes the step three times, twice as usual so that no
memory need be allocated any more, and once to capture it. A step reads one buffer and writes another, or the same items
into the same positions of a cache, so that it may be repeated. The graph belongs to the thread that captured it. With
the id -1 a run is as usual. There is no way to give a captured graph back but to end its session.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from threading import get_ident
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statewise.errors import BundleError
from statewise.model.graph_io import ITEMS, LENGTHS, OUTPUT, STEP_OUTPUT
from statewise.model.sampling_inputs import NUM_TOP
from statewise.model.spec import ModelSpec, TokenInput
from statewise_server.runtime.ort.onnx import onnxruntime
from statewise_server.runtime.ort.sessions import create_session, first_line
from statewise_server.runtime.state.memory import HOST, Buffer, bind
from statewise_server.runtime.state.pool import StatePool
from statewise_server.runtime.steps.bound_run import BoundRun
from statewise_server.runtime.steps.state_runs import StateRuns, bound_to

logger = logging.getLogger(__name__)

Array = NDArray[Any]

MAX_GRAPHS = 256
"""Graphs of one session: each holds memory of the device until the session ends. There are two for each number of rows,
one for each buffer of recurrent state, and other ones after the pool has been resized."""

RUNS_BEFORE_CAPTURE = 8
"""Capturing costs the time of about four steps: numbers of rows that come by in passing are not worth it."""

NOT_CAPTURED = -1


def load_captured(path: Path, *, intra_op_threads: int) -> onnxruntime.InferenceSession | None:
    """Load a graph whose runs on CUDA may be captured; None, with a warning, where ONNX Runtime refuses that."""
    try:
        return create_session(path, device="cuda", intra_op_threads=intra_op_threads, captures=True)
    except BundleError as error:
        # As where an operator of a plugin's has no CUDA kernel: a model that is slower is still served.
        logger.warning("not captured as CUDA graphs: %s", error)
        return None


class GraphIds:
    """The ids of a session's captured graphs; none is used twice."""

    def __init__(self, max_graphs: int = MAX_GRAPHS) -> None:
        self._max_graphs = max_graphs
        self.num_graphs = 0
        """Captured so far."""
        self._ids: dict[Hashable, int] = {}
        self._num_runs: Counter[Hashable] = Counter()

    def captured(self, key: Hashable) -> int:
        """Id of the captured graph for this key, or NOT_CAPTURED."""
        return self._ids.get(key, NOT_CAPTURED)

    def candidate(self, key: Hashable) -> int | None:
        """Id under which to capture the next run of this key; None where it is not to be captured."""
        self._num_runs[key] += 1
        if key in self._ids or self._num_runs[key] <= RUNS_BEFORE_CAPTURE or self.num_graphs >= self._max_graphs:
            return None
        return self.num_graphs + 1

    def add(self, key: Hashable) -> None:
        """Record that the run of this key was captured under the candidate's id."""
        self.num_graphs += 1
        self._ids[key] = self.num_graphs
        if self.num_graphs == self._max_graphs:
            logger.warning(
                "%d CUDA graphs captured, no more are: they keep their memory until the model is loaded again",
                self.num_graphs,
            )

    def forget(self) -> None:
        """Drop all captured graphs: the buffers that they read and write have moved."""
        self._ids.clear()
        self._num_runs.clear()

    def give_up(self) -> None:
        """Stop capturing, and use no captured graph any more."""
        self.forget()
        self._max_graphs = 0


@dataclass(frozen=True)
class _Places:
    """Buffers that a captured step reads and writes beside the state, for as many rows as the pool has."""

    pool: StatePool
    num_resizes: int
    """Resizes of the pool before these buffers were made."""
    items: Buffer
    lengths: Buffer
    """A one for every row."""
    output: Buffer
    """The output of every step, captured or not."""


class SplitStep:
    """The step's two graphs, run one after the other."""

    def __init__(
        self,
        spec: ModelSpec,
        model: onnxruntime.InferenceSession,
        choose: onnxruntime.InferenceSession,
        runs: StateRuns,
        *,
        captures: bool,
    ) -> None:
        self._spec = spec
        self._model = model
        self._choose = choose
        self._runs = runs
        self._ids = GraphIds() if captures else GraphIds(0)
        self._places: _Places | None = None

    @property
    def num_graphs(self) -> int:
        """CUDA graphs that have been captured."""
        return self._ids.num_graphs

    def run(self, pool: StatePool, rows: slice, inputs: dict[str, Array], wanted: list[str]) -> list[Array]:
        """Run both graphs over some rows; `inputs` are those of both."""
        places = self._places_for(pool)
        items, lengths = inputs[ITEMS], inputs[LENGTHS]
        if rows.start == 0 and items.shape[1] == 1 and (lengths == 1).all():
            self._decode(places, items)
        else:
            self._bound(places, rows).run(inputs, (), _options(NOT_CAPTURED))
        return self._chosen(places, slice(0, len(items)), inputs, wanted)

    def warm_up(self, pool: StatePool) -> None:
        """Capture and launch one graph, so that a failure shows while loading; nothing is committed."""
        places = self._places_for(pool)
        items = np.zeros((1, *places.items.shape[1:]), places.items.dtype)
        for _ in range(RUNS_BEFORE_CAPTURE + 2):
            self._decode(places, items)

    def _decode(self, places: _Places, items: Array) -> None:
        """Feed one item to each of the first rows, from the buffer that a captured graph reads."""
        num_rows = len(items)
        whole = np.zeros((places.pool.num_rows, *items.shape[1:]), items.dtype)
        whole[:num_rows] = items
        places.pool.memory.fill(places.items, whole)
        bound = self._bound(places, slice(0, num_rows), has_fixed_inputs=True)
        key = (get_ident(), num_rows, places.pool.is_swapped)
        if not self._capture(bound, key):
            bound.run({}, (), _options(self._ids.captured(key)))

    def _capture(self, bound: BoundRun, key: Hashable) -> bool:
        """Capture the run where that pays and is possible now; returns whether it was run."""
        graph = self._ids.candidate(key)
        if graph is None:
            return False
        try:
            if not bound.capture(_options(graph)):
                return False
        except Exception as error:  # ONNX Runtime's exception types have no common base of their own
            logger.warning("no more CUDA graphs, as one could not be captured: %s", first_line(error))
            self._ids.give_up()
            return False
        self._ids.add(key)
        return True

    def _bound(self, places: _Places, rows: slice, *, has_fixed_inputs: bool = False) -> BoundRun:
        pool = places.pool
        first = slice(0, rows.stop - rows.start)

        def make() -> BoundRun:
            bound = bound_to(pool, self._model, {"": rows}, [])
            bind(bound.binding.bind_output, OUTPUT, pool.memory.view(places.output, first))
            if has_fixed_inputs:
                bind(bound.binding.bind_input, ITEMS, pool.memory.view(places.items, first))
                bind(bound.binding.bind_input, LENGTHS, pool.memory.view(places.lengths, first))
            return bound

        key = (self._model, has_fixed_inputs, pool.is_swapped, rows.start, rows.stop)
        return self._runs.kept(pool, key, make)

    def _chosen(self, places: _Places, rows: slice, inputs: dict[str, Array], wanted: list[str]) -> list[Array]:
        pool = places.pool

        def make() -> BoundRun:
            bound = BoundRun(self._choose, wanted, keeps=pool.memory is HOST)
            bind(bound.binding.bind_input, STEP_OUTPUT, pool.memory.view(places.output, rows))
            return bound

        bound = self._runs.kept(pool, (self._choose, len(wanted), rows.stop), make)
        return bound.run(inputs, (int(inputs.get(NUM_TOP, 0)),))

    def _places_for(self, pool: StatePool) -> _Places:
        """Buffers beside the pool's state; made anew after each resize."""
        places = self._places
        if places is None or places.pool is not pool or places.num_resizes != pool.num_resizes:
            self._ids.forget()
            self._places = places = self._new_places(pool)
        return places

    def _new_places(self, pool: StatePool) -> _Places:
        reads, zeros, rows = self._spec.input, pool.memory.zeros, pool.num_rows
        if isinstance(reads, TokenInput):
            items = zeros((rows, 1), np.int64)
        else:
            items = zeros((rows, 1, reads.features), np.float32)
        lengths = zeros((rows,), np.int64)
        pool.memory.fill(lengths, np.ones(rows, np.int64))
        output = zeros((rows, self._spec.head.output_size), np.float32)
        return _Places(pool, pool.num_resizes, items, lengths, output)


def _options(graph: int) -> onnxruntime.RunOptions:
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph))
    return options
