"""`statewise demo tags`, as a user runs it, on a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_the_tags_demo_tells_what_the_server_tagged(tmp_path: Path) -> None:
    """Every held-back character is counted once, under its own tag, and the snippet comes back whole."""
    command = [sys.executable, "-P", "-m", "statewise", "demo", "tags", "--fast", "--folder", str(tmp_path)]

    done = subprocess.run(command, capture_output=True, text=True, timeout=200)

    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "tags-fast" / "summary.json").read_text())
    characters = {tag: figures["characters"] for tag, figures in summary["tags"].items()}
    assert list(characters.values()) == [sum(row) for row in summary["confusion"]]
    assert sum(characters.values()) > 4_000
    assert 0 < summary["baseline"] < 1
    assert "area(radius, *, pi=3.14159):  # of a circle" in done.stdout
    assert (tmp_path / "tags-fast" / "tags.png").read_bytes().startswith(b"\x89PNG")
