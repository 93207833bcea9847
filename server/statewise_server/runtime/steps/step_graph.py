"""The step of a bundle behind one interface: in one graph, or in two of which a GPU captures the first.

Nothing else in the runtime knows of captures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from statewise.model.spec import ModelSpec
from statewise_server.runtime.ort.onnx import onnxruntime
from statewise_server.runtime.ort.sessions import create_session
from statewise_server.runtime.state.pool import StatePool
from statewise_server.runtime.steps.captured import SplitStep, load_captured
from statewise_server.runtime.steps.state_runs import StateRuns

Array = NDArray[Any]


class StepGraph(Protocol):
    """Feeds new items to rows, and chooses the item after each row's last one."""

    def run(self, pool: StatePool, rows: slice, inputs: dict[str, Array], wanted: list[str]) -> list[Array]:
        """Run over some rows of the pool; returns the wanted outputs."""

    def warm_up(self, pool: StatePool) -> None:
        """Prepare decode steps, after a first run; leaves the rows as they are."""


class WholeStep:
    """The step and the choice in one graph."""

    def __init__(self, session: onnxruntime.InferenceSession, runs: StateRuns) -> None:
        self._session = session
        self._runs = runs

    def run(self, pool: StatePool, rows: slice, inputs: dict[str, Array], wanted: list[str]) -> list[Array]:
        """Run the graph over some rows of the pool."""
        return self._runs.run(pool, self._session, {"": rows}, inputs, wanted)

    def warm_up(self, pool: StatePool) -> None:
        """Do nothing: the first run has prepared all."""


def step_graph(
    spec: ModelSpec,
    step: onnxruntime.InferenceSession,
    choose: onnxruntime.InferenceSession | None,
    runs: StateRuns,
    *,
    captures: bool,
) -> StepGraph:
    """The step in one graph, or in two where `choose` is one; `captures`: whether runs of `step` may be captured."""
    return WholeStep(step, runs) if choose is None else SplitStep(spec, step, choose, runs, captures=captures)


def load_step(
    path: Path, *, device: str, intra_op_threads: int, captures: bool
) -> tuple[onnxruntime.InferenceSession, bool]:
    """Load the graph of a step; returns it and whether it may be captured, as `captures` asks where it can be.

    Raises BundleError as `create_session`.
    """
    session = load_captured(path, intra_op_threads=intra_op_threads) if captures and device == "cuda" else None
    if session is not None:
        return session, True
    return create_session(path, device=device, intra_op_threads=intra_op_threads), False
