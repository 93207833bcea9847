"""A demo's child processes: each a real `statewise` command, and none outlives the demo."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_PATIENCE = 30.0
"""Seconds in which a child that was asked to stop may write its checkpoint or end its streams."""

_READY_WITHIN = 120.0
"""Seconds in which the server must have loaded its models."""


@dataclass(frozen=True)
class Serving:
    """A server that answers."""

    address: str
    pid: int
    log: Path


@dataclass
class _Running:
    """A command that runs beside others, its output in a log."""

    process: subprocess.Popen[bytes]
    log: Path
    started: float


def run_step(
    arguments: Sequence[str],
    console: Console,
    *,
    module: str = "statewise",
    quiet: bool = False,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run `statewise ARGUMENTS`, or another module, at this terminal. Exits with the code of a command that fails."""
    shown = shlex.join([*(["statewise"] if module == "statewise" else ["python", "-m", module]), *arguments])
    if not quiet:
        console.print(f"[dim]$ {escape(shown)}[/]")
    with _child(arguments, module=module, environment=environment) as process:
        code = process.wait()
    if code:
        _give_up(f"`{shown}` failed with exit code {_shell_code(code)}; its own message is above", code)


def run_steps(
    commands: Mapping[str, Sequence[str]], logs: Path, console: Console, *, environment: Mapping[str, str] | None = None
) -> None:
    """Run `statewise ARGUMENTS` for each name, one per core at a time, in the given order, each with a log of its own.

    Exits with the code of the first command that fails, and shows the end of its log.
    """
    logs.mkdir(exist_ok=True)
    waiting = deque(commands.items())
    running: dict[str, _Running] = {}
    with ExitStack() as children:
        while waiting or running:
            while waiting and len(running) < (os.cpu_count() or 1):
                name, arguments = waiting.popleft()
                console.print(f"[dim]$ {escape(shlex.join(['statewise', *arguments]))}[/]")
                log = logs / f"{arguments[0]}-{name}.log"
                process = children.enter_context(_logged_child(arguments, log, environment))
                running[name] = _Running(process, log, time.monotonic())
            for name in [name for name, child in running.items() if child.process.poll() is not None]:
                _finish(name, running.pop(name), console)
            time.sleep(0.05)


def _finish(name: str, child: _Running, console: Console) -> None:
    if code := child.process.returncode:
        _give_up(f"{name} failed with exit code {_shell_code(code)}; the end of {child.log}:\n{_tail(child.log)}", code)
    console.print(f"{name}: done in {time.monotonic() - child.started:.0f} s, log {os.path.relpath(child.log)}")


@contextmanager
def serving(
    models: Path, port: int, folder: Path, max_rows: int, environment: Mapping[str, str] | None = None
) -> Iterator[Serving]:
    """Serve a repository from a child process, with its log in `folder`.

    Exits with the server's code where it does not get ready.
    """
    log, ready = folder / "server.log", folder / ".ready"
    ready.unlink(missing_ok=True)
    arguments = ["serve", "--models", str(models), "--port", str(port), "--max-rows", str(max_rows)]
    arguments += ["--threads", "1", "--ready-file", str(ready)]
    with _logged_child(arguments, log, environment) as process:
        yield Serving(_wait_until_ready(process, ready, log), process.pid, log)


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into SystemExit, so that `finally` ends the children."""

    def stop(number: int, _: FrameType | None) -> NoReturn:
        # A second Ctrl-C must not break off the ending of the children, which is bounded in time.
        for other in _SIGNALS:
            signal.signal(other, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _logged_child(
    arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output, _child(arguments, output, environment) as process:
        yield process


@contextmanager
def _child(
    arguments: Sequence[str],
    output: IO[bytes] | None = None,
    environment: Mapping[str, str] | None = None,
    module: str = "statewise",
) -> Iterator[subprocess.Popen[bytes]]:
    # -P: a folder named `server` or `training` in the working directory must not hide ours. A process group of
    # its own: Ctrl-C then reaches the demo alone, which passes on one signal, by the child's id.
    command = [sys.executable, "-P", "-m", module, *arguments]
    # A model this small gains little from a second thread, and waits at every operation where that one's core is
    # busy: on two cores with another program at work, training was four times as fast with one thread.
    whole = {"OMP_NUM_THREADS": "1"} | os.environ | dict(environment or {})
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=whole, process_group=0
    )
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE)
            return
        process.kill()
        process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], ready: Path, log: Path) -> str:
    deadline = time.monotonic() + _READY_WITHIN
    while not ready.exists():
        if (code := process.poll()) is not None:
            _give_up(f"the server ended with exit code {_shell_code(code)}:\n{_tail(log)}", code)
        if time.monotonic() > deadline:
            _give_up(f"the server was not ready after {_READY_WITHIN:g} s; its log is {log}", 1)
        time.sleep(0.05)
    return ready.read_text()


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


def _give_up(message: str, code: int) -> NoReturn:
    Console(stderr=True).print(f"[bold red]demo:[/] {escape(message)}", highlight=False, soft_wrap=True)
    raise typer.Exit(_shell_code(code))


def _shell_code(code: int) -> int:
    """Return an exit code as a shell gives it: 128 + n for a process that signal n ended."""
    return code if code >= 0 else 128 - code
