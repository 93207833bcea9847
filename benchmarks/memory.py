"""Resident memory of an engine with all rows full, against its weights and its state.

python -m benchmarks.memory BUNDLE VARIANT MAX_ROWS    measures one variant, in a process of its own
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.contenders.process import resident_bytes
from benchmarks.report import Report
from benchmarks.workloads import uniform
from statewise.bundles.reader import Bundle, open_bundle

MAX_ROWS = 16

NUM_NEW_TOKENS = 4


def add(report: Report, bundle: Bundle, variants: list[str], max_rows: int = MAX_ROWS) -> None:
    """Measure each variant and add a table, in MiB."""
    figures = {variant: measure(bundle, variant, max_rows) for variant in variants}
    rows = [[variant, *(f"{value:,.0f}" for value in found.values())] for variant, found in figures.items()]
    title = f"Resident memory, MiB: {max_rows} rows x {bundle.manifest.model.max_positions} positions"
    report.add(title, ["variant", *next(iter(figures.values()))], rows, memory=figures)


def measure(bundle: Bundle, variant: str, max_rows: int = MAX_ROWS) -> dict[str, float]:
    """Return MiB by use, from a fresh process."""
    command = [sys.executable, "-m", "benchmarks.memory", str(bundle.folder), variant, str(max_rows)]
    found: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return found


def main(folder: str, variant: str, max_rows: int) -> None:
    """Fill every row to its last position, and print the figures."""
    from benchmarks.contenders.served import requests_of, vocabulary_size
    from statewise_server.engine import Engine, EngineSettings
    from statewise_server.engine.queue_channel import run_all

    libraries = resident_bytes(os.getpid())
    bundle = open_bundle(Path(folder), check_hashes=False)
    engine = Engine.load(bundle, variant, EngineSettings(max_rows=max_rows, intra_op_threads=2))
    engine.start()
    positions = bundle.manifest.model.max_positions
    assert positions is not None
    full = uniform("full", max_rows, positions - NUM_NEW_TOKENS, NUM_NEW_TOKENS)
    run_all(engine, requests_of(full, vocabulary_size(bundle)))
    weights = sum(bundle.path(file).stat().st_size for file in bundle.variant(variant).data)
    parts = {"libraries": libraries, "weights": weights, "state": engine.state_bytes}
    total = resident_bytes(os.getpid())
    engine.close()
    parts |= {"the rest": total - sum(parts.values()), "resident": total}
    print(json.dumps({name: round(value / 2**20, 1) for name, value in parts.items()}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
