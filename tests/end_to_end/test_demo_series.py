"""`statewise demo series`, as a user runs it, on a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from statewise.cli.demos.series import HORIZON, NUM_LEARNED, _read_weather


def test_the_demo_runs_to_its_end(tmp_path: Path) -> None:
    """It trains, certifies, serves and forecasts; the summary has the figures, and there is a fan."""
    command = [sys.executable, "-P", "-m", "statewise", "demo", "series", "--fast", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    folder = tmp_path / "series-fast"

    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["num_forecasts"] > 3
    assert 0 < summary["coverage"]["50%"] < summary["coverage"]["90%"] <= 1
    assert summary["certificate"]["sampled_vectors"]["compared"] > 400
    assert (folder / "fan.png").read_bytes().startswith(b"\x89PNG")
    assert "forecasts of 2015" in done.stdout


def test_the_last_year_is_not_learned_from() -> None:
    """Training has three whole years, and every forecast begins after them."""
    dates, days = _read_weather()

    assert (dates[0], dates[NUM_LEARNED - 1], dates[NUM_LEARNED]) == ("2012/01/01", "2014/12/31", "2015/01/01")
    assert len(days) - NUM_LEARNED == 365 > HORIZON
