"""`statewise plot gradients`, through the program."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from statewise.cli import main


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["plot", "gradients", *map(str, arguments)])
    return int(stopped.value.code or 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two families, at a distance that is easy and at one that is not."""
    folder = tmp_path_factory.mktemp("plot")
    options = ("--families", "rnn,lstm", "--distances", "80,5", "--steps", "400")
    assert run(*options, "--output", folder / "new" / "gates.png") == 0
    return folder / "new"


@pytest.fixture
def families(folder: Path) -> dict[str, Any]:
    return {family["name"]: family for family in json.loads((folder / "gates.json").read_text())["families"]}


def test_an_lstm_copies_over_a_distance_at_which_the_rnn_fails(families: dict[str, Any]) -> None:
    """Both tell the symbol 5 steps back; 80 steps back the LSTM does, and the RNN knows little more than chance."""
    assert min(family["accuracy"]["5"] for family in families.values()) > 0.99
    assert families["lstm"]["accuracy"]["80"] > 0.95
    assert families["rnn"]["accuracy"]["80"] < 0.5


def test_the_gradient_vanishes_in_the_rnn_and_passes_through_gates(families: dict[str, Any]) -> None:
    """Over 79 steps the trained LSTM keeps a hundredth of it and more, the RNN not a millionth."""
    assert families["lstm"]["gradient_trained"][-1] > 1e-2
    assert families["rnn"]["gradient_trained"][-1] < 1e-6
    assert families["lstm"]["gradient_untrained"][-1] < 1e-6
    assert {len(family["gradient_trained"]) for family in families.values()} == {80}


def test_the_picture_is_there_with_its_numbers_and_nothing_else(folder: Path) -> None:
    """One PNG, and one JSON file beside it, which also says what was trained."""
    assert sorted(path.name for path in folder.iterdir()) == ["gates.json", "gates.png"]
    assert (folder / "gates.png").read_bytes().startswith(b"\x89PNG")
    settings = json.loads((folder / "gates.json").read_text())
    assert (settings["distances"], settings["num_steps"], settings["hidden_size"]) == ([5, 80], 400, 64)


BAD_INPUT = {
    "an unknown family": (
        ("--output", "new/a.png", "--families", "lstm,fractal"),
        "families: no plugin named 'fractal'",
    ),
    "a family without a hidden vector": (("--families", "transformer"), "families: 'transformer' carries no"),
    "distance 0": (("--distances", "5,0"), "distances: '0' is no whole number from 1 to 1000"),
    "an absurd distance": (("--distances", "1000000"), "distances: '1000000' is no whole"),
    "no distance": (("--distances", ""), "distances: '' is no whole"),
    "another format": (("--output", "picture.jpg"), "output: picture.jpg does not end in .png"),
    "a folder that cannot be": (("--output", "/dev/null/a.png"), "output: /dev/null/a.png cannot be written"),
    "width 0": (("--hidden-size", "0"), "--hidden-size"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_told_before_anything_is_trained(case: str, tmp_path: Path, monkeypatch, capsys) -> None:
    """Exit code 2, and one message with the name, the value and what is possible; no file is left."""
    arguments, message = BAD_INPUT[case]
    monkeypatch.chdir(tmp_path)

    assert run(*arguments) == 2

    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_a_folder_is_refused(tmp_path: Path, capsys) -> None:
    """Neither the picture nor its numbers replace a folder."""
    for name in ("a.png", "b.json"):
        (tmp_path / name).mkdir()
        assert run("--output", (tmp_path / name).with_suffix(".png")) == 2
        assert f"output: {tmp_path / name} is a folder" in capsys.readouterr().err


def test_the_program_lists_the_group_by_its_name(capsys) -> None:
    """A group of commands that a program brings stands in `statewise --help` like a single one."""
    with pytest.raises(SystemExit):
        main(["--help"])

    assert any(line.split()[1:3] == ["plot", "Draw"] for line in capsys.readouterr().out.splitlines())


def test_help_needs_no_torch() -> None:
    """The command is imported without what takes seconds, so that help and mistakes come at once."""
    script = (
        "import sys, statewise_training.cli.gradients; print([m for m in ('torch', 'matplotlib') if m in sys.modules])"
    )

    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout

    assert output.strip() == "[]"
