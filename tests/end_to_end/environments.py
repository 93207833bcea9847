"""Virtual environments with the built wheel and no more than its metadata requires."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
DECOYS = ("server", "training", "export", "tests")


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and a working folder whose packages must not be taken for Statewise's."""

    python: Path
    folder: Path

    @property
    def script(self) -> tuple[str, ...]:
        """The `statewise` script."""
        return (str(self.python.with_name("statewise")),)

    @property
    def module(self) -> tuple[str, ...]:
        """`python -m statewise`, for which the working folder comes first on the path."""
        return (str(self.python), "-m", "statewise")

    def variables(self) -> dict[str, str]:
        """The variables of a process in this environment: the working folder is on PYTHONPATH too."""
        kept = {name: os.environ[name] for name in ("HOME", "TMPDIR", "OMP_NUM_THREADS") if name in os.environ}
        return kept | {"PATH": os.defpath, "PYTHONPATH": str(self.folder), "COLUMNS": "200"}

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command in the working folder, to its end."""
        return subprocess.run(
            list(map(str, command)),
            cwd=self.folder,
            env=self.variables(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=200,
        )

    def check(self, *command: str | Path) -> str:
        """Run a command that must succeed; returns its standard output."""
        done = self.run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def serving(self, program: tuple[str, ...], models: Path, scratch: Path) -> Iterator[str]:
        """Serve the models of a repository on a free port; gives the address."""
        ready, log = scratch / "ready", scratch / "log"
        command = [*program, "serve", "--models", str(models), "--port", "0", "--ready-file", str(ready)]
        with log.open("w") as output:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.variables(), stdout=output, stderr=subprocess.STDOUT
            )
        try:
            deadline = time.monotonic() + 60
            while not ready.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"the server did not start:\n{log.read_text()}")
                time.sleep(0.02)
            yield ready.read_text()
        finally:
            process.kill()
            process.wait()


def build(folder: Path) -> tuple[Path, Path]:
    """Build the wheel and the source distribution of this working copy."""
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, source


def make_working_folder(folder: Path) -> Path:
    """A folder with packages that have general names; importing one is an error."""
    for name in DECOYS:
        package = folder / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f"raise RuntimeError('{name} in the working folder was imported')\n")
    return folder


def make_environment(folder: Path, wheel: Path, working_folder: Path, extra: str | None = None) -> Environment:
    """An environment with the wheel and what it requires with one extra, or without any.

    Nothing is downloaded: the requirements are linked from the environment that runs the tests.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index"]
    subprocess.run([*pip, "--no-deps", "--no-compile", str(wheel)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (metadata,) = packages.glob("statewise-*.dist-info")
    for found in _required_by(Distribution.at(metadata), {extra} if extra else set()):
        _link(found, packages)
    return Environment(python, working_folder)


def _required_by(
    parent: Distribution, extras: Iterable[str], seen: set[tuple[str, str]] | None = None
) -> Iterator[Distribution]:
    """The distributions that one requires with these extras, those that they require, and so on."""
    seen = set() if seen is None else seen
    for text in parent.requires or ():
        requirement = Requirement(text)
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue
        key = requirement.name.lower(), ",".join(sorted(requirement.extras))
        if key not in seen:
            seen.add(key)
            found = distribution(requirement.name)
            yield found
            yield from _required_by(found, requirement.extras, seen)


def _link(found: Distribution, packages: Path) -> None:
    """Link the modules and packages of a distribution; its scripts and .pth files stay away."""
    names = {file.parts[0] for file in found.files or () if file.suffix != ".pth"}
    for name in names - {"..", "__pycache__"}:
        link = packages / name
        if not link.exists():
            link.symlink_to(Path(str(found.locate_file(name))).resolve())
