"""Contender processes: each loads once, then measures one workload per line of its standard input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.workloads import Workload


class ContenderError(Exception):
    """Error of a contender that cannot take part, or not in this workload."""


class Subject(ABC):
    """Subject of a measurement, inside its process."""

    @abstractmethod
    def measure(self, workload: Workload) -> float:
        """Seconds for the workload, without preparation."""

    @property
    def pid(self) -> int:
        """Id of the process whose memory is measured."""
        return os.getpid()

    def close(self) -> None:  # noqa: B027 - most have nothing to end
        """End the processes and threads that the subject started."""


@dataclass(frozen=True)
class Contender:
    """Command of a contender: a module with a `main`, the Python to run it, its arguments."""

    name: str
    module: str
    arguments: tuple[str, ...]
    python: str = sys.executable
    only_uniform: bool = False
    """Whether it takes only uniform requests, all running at once, for lack of a queue."""
    workloads: tuple[str, ...] = ()
    """Workloads that it takes part in; all where empty."""

    def takes(self, workload: Workload) -> bool:
        """Whether it takes part in this workload."""
        if self.workloads and workload.name not in self.workloads:
            return False
        return workload.is_uniform or not self.only_uniform


class Running:
    """Handle of a contender's process."""

    def __init__(self, contender: Contender) -> None:
        command = [contender.python, "-m", contender.module, *contender.arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def wait_ready(self) -> None:
        """Wait until it has loaded; raises ContenderError if it fails."""
        self._read()

    def measure(self, workload: Workload) -> dict[str, float]:
        """Output tokens per second, and the resident MiB afterwards; raises ContenderError."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(asdict(workload)) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise ContenderError("its process has ended") from error
        return self._read()

    def close(self) -> None:
        """End the process, and the server that it may have started."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        # A library may also print to standard output.
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                if "error" in answer:
                    raise ContenderError(answer["error"])
                return answer
        raise ContenderError(f"its process ended with {self._process.wait()}")


def answer(load: Callable[..., Subject], *arguments: Any) -> None:
    """Load a subject and measure until standard input ends: main loop of a contender's process."""
    subject = None
    try:
        subject = load(*arguments)
        _say({"ready": True})
        for line in sys.stdin:
            _say(_measure(subject, _workload(line)))
    except Exception as error:
        _say({"error": f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"})
    finally:
        if subject is not None:
            subject.close()


def _measure(subject: Subject, workload: Workload) -> dict[str, float]:
    seconds = subject.measure(workload)
    return {"tokens_per_second": workload.num_outputs / seconds, "resident_mib": resident_bytes(subject.pid) / 2**20}


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def _workload(line: str) -> Workload:
    fields = json.loads(line)
    lengths = {name: tuple(fields.pop(name)) for name in ("prompt_lengths", "output_lengths")}
    return Workload(**fields, **lengths)


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)
