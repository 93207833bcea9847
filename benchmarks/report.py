"""Reports of figures as tables, Markdown and JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from statewise.versions import installed_versions


class Report:
    """Results of a benchmark by section: shown at once, written at the end."""

    def __init__(self, title: str, console: Console) -> None:
        self._console = console
        self._markdown = [f"# {title}"]
        self._content: dict[str, Any] = {"title": title, "machine": machine()}

    def add(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], **content: Any) -> None:
        """Show a table and keep it; `content` is its JSON."""
        table = Table(title=title, title_justify="left")
        for index, column in enumerate(columns):
            table.add_column(column, justify="right" if index else "left")
        for row in rows:
            table.add_row(*row)
        self._console.print(table)
        lines = [_line(columns), _line(["---"] * len(columns)), *map(_line, rows)]
        self._markdown += [f"## {title}", "\n".join(lines)]
        self._content |= content

    def write(self, path: Path) -> None:
        """Write the JSON, and the Markdown beside it."""
        path.write_text(json.dumps(self._content, indent=1) + "\n")
        markdown = path.with_suffix(".md")
        markdown.write_text("\n\n".join([*self._markdown, f"Machine: {self._content['machine']}"]) + "\n")
        self._console.print(f"Figures: {path}, {markdown}")


def machine() -> dict[str, Any]:
    """Processor, cores and the versions that the figures depend on."""
    return {
        "processor": _processor(),
        "num_cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": installed_versions(("statewise", "onnxruntime", "onnxruntime-gpu", "torch", "numpy")),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def number(value: float | None) -> str:
    """Format a rate; a dash for None."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
