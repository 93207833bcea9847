"""Commands that are listed without being imported, and run with the extra that they need."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pytest

from statewise import cli
from statewise.cli import groups
from statewise.cli.table import COMMANDS, PLOTS, Command


def run(capfd: Any, *arguments: str) -> tuple[int, str, str]:
    """Run the command in this process; returns exit code, standard output and standard error."""
    with pytest.raises(SystemExit) as exit_info:
        cli.main(arguments)
    output, errors = (" ".join(text.replace("│", " ").split()) for text in capfd.readouterr())
    return int(exit_info.value.code or 0), output, errors


def announce(monkeypatch: Any, **values: str) -> None:
    entries = [EntryPoint(name, value, "statewise.commands") for name, value in values.items()]
    monkeypatch.setattr(groups, "entry_points", lambda group: entries)


TABLES = [
    *(("statewise.commands", command) for command in COMMANDS),
    *(("statewise.commands.plot", command) for command in PLOTS),
]


@pytest.mark.parametrize(("group", "command"), TABLES, ids=lambda value: getattr(value, "name", ""))
def test_the_table_says_what_the_command_says(group: str, command: Command) -> None:
    """A command's summary in the table is the first paragraph of its own help."""
    (entry,) = entry_points(group=group, name=command.name) or [EntryPoint(command.name, command.function or "", group)]
    imported = groups.load(entry)

    assert command.summary == " ".join(imported.help.split("\n\n")[0].split())


@pytest.mark.parametrize("arguments", [("--help",), ("plot", "--help"), ("--version",)])
def test_help_imports_no_command(arguments: tuple[str, ...]) -> None:
    """The list of commands comes without the packages that any of them needs."""
    program = (
        "import atexit, sys\n"
        "heavy = {'grpc', 'numpy', 'yaml', 'matplotlib', 'onnxruntime', 'torch', 'statewise_server'}\n"
        "atexit.register(lambda: print(sorted(heavy & set(sys.modules))))\n"
        f"from statewise.cli import main; main({list(arguments)})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ("yaml", ("train", "a.yaml"), "train"),
        ("yaml", ("serve",), "server"),
        ("yaml", ("demo",), "demos"),
        ("onnxruntime", ("verify", "nowhere"), "train"),
        ("onnxruntime", ("serve", "--models", "nowhere"), "server"),
        ("torch", ("plot", "gradients"), "train"),
    ],
)
def test_a_missing_package_is_told_with_the_extra_of_the_command(
    missing: str, arguments: tuple[str, ...], extra: str
) -> None:
    """The extra is the one that the whole command needs, whichever of its packages is missed first."""
    program = f"import sys; sys.modules[{missing!r}] = None; from statewise.cli import main; main({list(arguments)})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert done.returncode == 2
    assert f"cannot run: {missing} is not installed; this needs: pip install 'statewise[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_lists_a_command_whose_extra_is_missing(capfd: Any, monkeypatch: Any) -> None:
    """Without its extra a command is listed, with the extra that it needs."""
    monkeypatch.setitem(sys.modules, "lightning", None)

    _, output, _ = run(capfd, "--help")

    assert "ready for `statewise export`. Needs statewise[train]." in output
    assert "Serve the models of a repository over gRPC. generate" in output


def need_torch() -> None:
    """Import torch when it runs."""
    import torch  # noqa: F401


def test_a_package_that_is_missed_while_a_command_runs_is_told_too(capfd: Any, monkeypatch: Any) -> None:
    """A command of a third party that imports late says the same, with the package's own extra."""
    monkeypatch.setitem(sys.modules, "torch", None)
    announce(monkeypatch, tune=f"{__name__}:need_torch")

    code, _, errors = run(capfd, "tune")

    assert (code, "pip install 'statewise[train]'" in errors) == (2, True)


def test_a_command_that_cannot_be_imported_breaks_no_other(capfd: Any, monkeypatch: Any) -> None:
    """A broken command of a third party is listed with the reason, and run with it; the others are listed."""
    announce(monkeypatch, broken="statewise_nowhere:run")

    code, listed, _ = run(capfd, "--help")
    failed, _, errors = run(capfd, "broken")

    assert (code, "statewise_nowhere:run cannot be imported" in listed, "generate" in listed) == (0, True, True)
    assert (failed, "`statewise broken` cannot run: statewise_nowhere:run cannot be imported" in errors) == (2, True)
