"""`statewise demo text`, as a user runs it, on a tiny model."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from statewise.bundles.certificate import check_certificate
from statewise.bundles.reader import open_bundle
from statewise.cli.demos import DEMOS, load_demo
from statewise.errors import NotFoundError
from statewise.locks import locked_folder

PNG = b"\x89PNG\r\n"


class Run(NamedTuple):
    """One run of the demo that ended well."""

    output: str
    summary: dict[str, Any]


def command(folder: Path) -> list[str]:
    """The demo's command line."""
    return [sys.executable, "-P", "-m", "statewise", "demo", "--fast", "--folder", str(folder.parent)]


def run_demo(folder: Path) -> Run:
    """Run the demo to its end."""
    done = subprocess.run(command(folder), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return Run(done.stdout, json.loads((folder / "summary.json").read_text()))


def family(run: Run, name: str) -> dict[str, Any]:
    """What the summary says of one model."""
    (found,) = (family for family in run.summary["families"] if family["training"]["name"] == name)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that two runs of the demo share, as --fast names it."""
    return tmp_path_factory.mktemp("demo") / "text-fast"


@pytest.fixture(scope="module")
def first(folder: Path) -> Run:
    """The first run, which makes everything."""
    return run_demo(folder)


@pytest.fixture(scope="module")
def second(folder: Path, first: Run) -> Run:
    """A second run in the same folder."""
    return run_demo(folder)


def test_summary_holds_quality_certificate_and_speed(first: Run) -> None:
    """One summary says how good the model is, that the export is right, and how fast it streams."""
    main, certificate = family(first, "lstm"), first.summary["certificate"]
    training = main["training"]
    greedy, sampled = certificate["greedy_tokens"], certificate["sampled_tokens"]

    assert 0 < training["baselines"]["bigram"] < training["baselines"]["unigram"] < 8
    assert 0 < training["bits_per_character"] < 16
    assert certificate["max_absolute_error"] < 1e-5
    assert greedy["equal"] + greedy["near_ties"] == greedy["compared"] > 0
    assert sampled["equal"] + sampled["near_ties"] == sampled["compared"] > 0
    assert certificate["batch_invariant"]
    assert set(main["tokens_per_second"]) == {"1", "32"}
    assert min(main["tokens_per_second"].values()) > 0
    assert first.summary["reused"] == []


def test_families_stand_side_by_side(first: Run) -> None:
    """Each family's figures are in one table, the counted table of the Markov model among them."""
    markov = family(first, "markov")
    training = markov["training"]
    line = next(line for line in first.output.splitlines() if line.strip().startswith("markov "))

    assert markov["state_bytes"] == 8
    assert family(first, "lstm")["state_bytes"] == 2 * 32 * 4
    assert line.split()[1:5] == [f"{training['bits_per_character']:.3f}", f"{training['parameters']:,}", "8", "counted"]


def test_summary_is_printed(first: Run) -> None:
    """The figures of summary.json are on the terminal too, once."""
    assert first.output.count("Summary") == 1
    assert f"{family(first, 'lstm')['training']['bits_per_character']:.3f}" in first.output.partition("Summary")[2]
    assert first.summary["bundle"] in first.output


def test_continuations_are_streamed(first: Run) -> None:
    """The greedy and the sampled continuation each follow the prompt."""
    _, greedy, sampled = first.output.partition("5/5")[0].split('The "with" statement is used to ')

    assert len(greedy) > 50
    assert greedy[:50] != sampled[:50]


def test_bundle_and_pictures_are_left(first: Run) -> None:
    """What the summary names is there: a certified bundle, and PNG pictures."""
    bundle = open_bundle(Path(first.summary["bundle"]))

    assert check_certificate(bundle, first.summary["certificate"]["variant"]).passed
    assert len(first.summary["pictures"]) == 2
    for picture in first.summary["pictures"]:
        assert Path(picture).read_bytes().startswith(PNG)


def test_second_run_reuses_model_and_bundle(first: Run, second: Run) -> None:
    """A second run trains and exports nothing, and says so."""
    assert second.summary["reused"] == ["model lstm", "model markov", "bundle lstm", "bundle markov"]
    assert family(second, "lstm")["training"] == family(first, "lstm")["training"]
    assert second.summary["bundle"] == first.summary["bundle"]
    assert "reused" in second.output
    assert "$ statewise" not in second.output


def test_no_server_is_left_behind(folder: Path, second: Run) -> None:
    """The server ends with the demo."""
    processes = [path for path in Path("/proc").iterdir() if path.name.isdigit()]

    assert not [path for path in processes if str(folder).encode() in _command_line(path)]


def test_second_demo_at_once_is_refused(folder: Path, second: Run) -> None:
    """A demo in a folder where another one is at work ends with exit code 2 and says why."""
    with locked_folder(folder, "--folder", taken=""):
        refused = subprocess.run(command(folder), capture_output=True, text=True, timeout=60)

    assert refused.returncode == 2
    assert "another demo is running; wait for it" in refused.stderr


def test_failed_step_ends_the_demo_with_its_exit_code(tmp_path: Path) -> None:
    """Where training cannot write, its exit code and message are the demo's."""
    folder = tmp_path / "text-fast"
    folder.mkdir()
    (folder / "runs").write_text("a file where a folder is wanted")
    failed = subprocess.run(command(folder), capture_output=True, text=True, timeout=60)

    assert failed.returncode == 2
    assert "failed with exit code 2; the end of" in failed.stderr
    assert "Not a directory" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_unknown_demo_lists_the_known_ones() -> None:
    """A name that is no demo is refused with those that are."""
    with pytest.raises(NotFoundError, match=r"there is no demo 'txet'; there are: text"):
        load_demo("txet")


def test_every_listed_demo_is_there() -> None:
    """Each name of the table is a module with a `run`."""
    assert all(callable(load_demo(name)) for name in DEMOS)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_demo_and_its_server(folder: Path, second: Run, number: signal.Signals) -> None:
    """A demo that is stopped while its server runs takes the server with it."""
    ready = folder / ".ready"
    demo = subprocess.Popen(command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not ready.exists() and demo.poll() is None:
            time.sleep(0.01)
        demo.send_signal(number)
        code = demo.wait(timeout=60)
    finally:
        demo.kill()

    assert code == 128 + number
    assert not ready.exists()
    assert not [path for path in Path("/proc").glob("[0-9]*") if str(folder).encode() in _command_line(path)]


def _command_line(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""
