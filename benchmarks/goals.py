"""Goals of the Transformer benchmark, as ratios within one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.contenders.turns import Figures


@dataclass(frozen=True)
class Goal:
    """Minimum speed of one contender relative to another in a workload."""

    text: str
    workload: str
    contender: str
    base: str
    at_least: float

    def row(self, figures: Mapping[str, Figures]) -> list[str] | None:
        """Return description, goal, result and verdict; None if one of the two was not measured."""
        found = figures.get(self.workload)
        rate, base = (found.rate(self.contender), found.rate(self.base)) if found else (None, None)
        if rate is None or base is None:
            return None
        return [self.text, f">= {self.at_least}", f"{rate / base:.2f}", "yes" if rate / base >= self.at_least else "no"]


GOALS = (
    Goal("W1 float32, of the read bandwidth over the weights", "W1", "engine float32", "weights read", 0.9),
    Goal("W2 float32, of the bare loop", "W2", "engine float32", "bare loop float32", 0.9),
    Goal("W2 int8, of the bare loop", "W2", "engine int8", "bare loop int8", 0.9),
    *(
        Goal(f"{workload} {precision} through gRPC, of the engine", workload, f"gRPC {precision}", base, 0.95)
        for workload in ("W1", "W2", "W3@16", "W3@32")
        for precision, base in (("float32", "engine float32"), ("int8", "engine int8"))
    ),
    Goal("W2 int8, of float32", "W2", "engine int8", "engine float32", 1.8),
    Goal("W2 int8, of OpenVINO's default", "W2", "engine int8", "OpenVINO GenAI default", 1.0),
    Goal("W1 int4, of float32", "W1", "engine int4", "engine float32", 2.3),
)
