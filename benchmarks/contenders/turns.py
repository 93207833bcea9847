"""Contenders taking turns, so that a slow minute of the machine affects all of them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from rich.console import Console
from rich.progress import track

from benchmarks.contenders.process import Contender, ContenderError, Running
from benchmarks.workloads import Workload

SETTLE_SECONDS = 0.5
"""Seconds of rest between two measurements."""


@dataclass
class Figures:
    """Results of one workload, by contender."""

    workload: Workload
    rates: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Output tokens per second in each round."""
    resident_mib: dict[str, float] = field(default_factory=dict)

    def rate(self, name: str) -> float | None:
        """Median rate over the rounds; None for a contender that was not measured."""
        return median(self.rates[name]) if self.rates.get(name) else None

    def ratio(self, name: str, base: str) -> str:
        """Speed relative to `base`; a dash if one was not measured."""
        rate, other = self.rate(name), self.rate(base)
        return f"{rate / other:.2f}" if rate and other else "-"

    def to_json(self) -> dict[str, Any]:
        """Return medians, ranges and memory."""
        return {
            "workload": self.workload.name,
            "tokens_per_second": {name: median(rates) for name, rates in self.rates.items()},
            "range": {name: [min(rates), max(rates)] for name, rates in self.rates.items()},
            "resident_mib": self.resident_mib,
        }


class Field(AbstractContextManager["Field"]):
    """Contenders of a benchmark, all alive at once."""

    def __init__(self, contenders: Iterable[Contender], console: Console) -> None:
        self.contenders = list(contenders)
        self.failures: dict[str, str] = {}
        """Reasons why contenders were not measured, or not completely."""
        self._console = console
        self._running = {contender.name: Running(contender) for contender in self.contenders}
        with console.status("loading the contenders"):
            for name in list(self._running):
                self._try(name, self._running[name].wait_ready)

    def __exit__(self, *_: object) -> None:
        for running in self._running.values():
            running.close()

    def measure(self, workload: Workload, rounds: int) -> Figures:
        """Run the workload once per round with each contender that takes part, in a different order each time."""
        figures = Figures(workload)
        names = [contender.name for contender in self.contenders if contender.takes(workload)]
        for name in names:
            self._measure(name, workload.warm_up())
        for number in track(range(rounds), workload.name, console=self._console, transient=True):
            # Worker threads of PyTorch and OpenMP still spin when the next contender starts.
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                time.sleep(SETTLE_SECONDS)
                result = self._measure(name, replace(workload, seed=number))
                if result is not None:
                    figures.rates[name].append(result["tokens_per_second"])
                    figures.resident_mib[name] = result["resident_mib"]
        return figures

    def _measure(self, name: str, workload: Workload) -> dict[str, float] | None:
        running = self._running.get(name)
        return self._try(name, lambda: running.measure(workload)) if running else None

    def _try(self, name: str, action: Any) -> Any:
        try:
            return action()
        except ContenderError as error:
            self.failures[name] = str(error)
            self._console.print(f"[yellow]{name}: not measured: {error}")
            self._running.pop(name).close()
            return None
