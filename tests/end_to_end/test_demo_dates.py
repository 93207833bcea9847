"""`statewise demo dates`, as a user runs it, on a tiny model; and the dates that it is made of."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from statewise.cli.demos.dates_data import HELD_OUT_STYLE, LANGUAGES, Style, make_dates

PNG = b"\x89PNG\r\n"


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run the demo to its end; what it found out."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-P", "-m", "statewise", "demo", "dates", "--fast", "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads((folder / "dates-fast" / "summary.json").read_text())
    return found


def test_every_date_is_asked_greedily_and_by_beam_search(summary: dict[str, Any]) -> None:
    """Each style once, the held-out one ten times, by the server."""
    assert summary["held_out_days"]["asked"] == summary["held_out_days_beams"]["asked"] == 47
    assert summary["held_out_style"]["asked"] == 10
    assert set(summary["by_language"]) == set(LANGUAGES)
    assert summary["dates_per_second"] > 0
    assert summary["certificate"]["batch_invariant"]
    assert all(Path(picture).read_bytes().startswith(PNG) for picture in summary["pictures"])


def test_what_is_held_out_is_not_learnt_from() -> None:
    """No day that is asked is learnt from in any language, and the held-out style at no day."""
    dates = make_dates(2_000, 5)

    learnt = {pair.target for pair in dates.train}
    assert learnt.isdisjoint(pair.target for pair in [*dates.held_out_days, *dates.held_out_style])
    assert HELD_OUT_STYLE not in {pair.style for pair in dates.train}
    assert {pair.style for pair in dates.held_out_style} == {HELD_OUT_STYLE}
    assert {pair.style.language for pair in dates.train} == set(LANGUAGES)
    assert make_dates(2_000, 5) == dates


@pytest.mark.parametrize(
    ("style", "is_clear"),
    [
        (Style("en", "full"), True),
        (Style("de", "medium"), True),
        (Style("hu", "short"), True),
        (Style("en", "short"), False),
        (Style("de", "short"), False),
        (Style("fr", "short"), False),
    ],
)
def test_only_styles_that_tell_day_month_and_year_apart_are_used(style: Style, is_clear: bool) -> None:
    """Two digits for a year, or slashes, leave open what is what."""
    assert style.is_clear == is_clear
