"""Server and client processes for tests; each ends with its `with` block."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from statewise import Client


@dataclass(frozen=True)
class ServerProcess:
    """A `statewise serve` that is ready."""

    process: subprocess.Popen[str]
    address: str

    def rows_in_use(self) -> int:
        """Streams that run or wait, over all models."""
        with Client(self.address, timeout=10) as client:
            return sum(model.running + model.waiting for model in client.models())

    def resident_mib(self) -> float:
        """The process's resident size."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        (kib,) = (line.split()[1] for line in lines if line.startswith("VmRSS"))
        return int(kib) / 1024

    def wait_until_idle(self, timeout: float = 10.0) -> None:
        """Fail unless every row is free soon."""
        deadline = time.monotonic() + timeout
        while self.rows_in_use():
            assert time.monotonic() < deadline, "rows are still in use"
            time.sleep(0.01)


@contextmanager
def serving(
    repository: Path, scratch: Path, *flags: str, program: tuple[str, ...] = ("-m", "statewise", "serve")
) -> Iterator[ServerProcess]:
    """Serve a repository on a free port, through the command or another program with its flags."""
    ready = scratch / "ready"
    command = [sys.executable, *program, "--models", str(repository), "--port", "0"]
    command += ["--ready-file", str(ready), *flags]
    with (scratch / "log").open("w") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + 60
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the server did not start:\n{(scratch / 'log').read_text()}")
            time.sleep(0.02)
        yield ServerProcess(process, ready.read_text())
    finally:
        process.kill()
        process.wait()


@contextmanager
def client_process(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run client code in a process of its own."""
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
