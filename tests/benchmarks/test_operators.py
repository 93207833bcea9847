"""The profile of a decode step."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.models import open_newest
from benchmarks.operators import by_operator, decode


def test_a_profile_counts_the_operators_of_the_decode_steps_alone(repository: Path, tmp_path: Path) -> None:
    """Two layers call attention twice a step, whatever prompts and the first step called; any model can be measured."""
    bundle = open_newest(repository, "transformer")

    seconds = decode(bundle, "cpu-float32", 3, 20, 4, tmp_path / "profile")

    assert len(decode(open_newest(repository, "gru-series"), "cpu-float32", 2, 5, 3)) == 3
    (file,) = tmp_path.iterdir()
    totals = by_operator(json.loads(file.read_text()), 4)
    assert len(seconds) == 4
    assert totals["GroupQueryAttention"][0] == 4 * 2
    assert all(milliseconds > 0 for _, milliseconds in totals.values())


def test_what_runs_inside_a_branch_counts_as_the_branch() -> None:
    """No time is counted twice."""

    def node(name: str, start: int, duration: int) -> dict[str, object]:
        return {"name": f"{name}_kernel_time", "ts": start, "dur": duration, "args": {"op_name": name}}

    run = {"name": "model_run", "ts": 0, "dur": 100, "args": {}}
    inside = [node("Add", 12, 5), node("Mul", 20, 5)]

    totals = by_operator([*inside, node("If", 10, 30), node("Add", 50, 1), run], 1)

    assert totals == {"If": (1, 0.03), "Add": (1, 0.001)}
