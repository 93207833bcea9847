"""Folders that one process at a time works in."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from statewise.errors import ConfigError
from statewise.locks import locked_folder

HOLDER = """
import sys, time
from pathlib import Path
from statewise.locks import locked_folder
with locked_folder(Path(sys.argv[1]), "output", taken=""):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_user_is_refused_until_the_first_one_is_done(tmp_path: Path) -> None:
    """The message is the one that was given; a nested user, and one after the first, are told apart."""
    folder = tmp_path / "a" / "b"
    with locked_folder(folder, "output", taken="busy"):
        with pytest.raises(ConfigError, match=r"^output: busy$"), locked_folder(folder, "output", taken="busy"):
            pass
        (folder / "file").touch()
    with locked_folder(folder, "output", taken="busy"):
        pass

    assert [path.name for path in folder.iterdir()] == ["file"]


def test_a_folder_in_which_nothing_was_written_goes(tmp_path: Path) -> None:
    """Neither the folder nor its lock file is left behind."""
    with locked_folder(tmp_path / "new", "output", taken="busy"):
        pass

    assert not (tmp_path / "new").exists()


def test_what_is_no_folder_is_refused_with_the_reason(tmp_path: Path) -> None:
    """A file in the folder's place, or above it, is named with the option."""
    (tmp_path / "file").touch()

    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with (
            pytest.raises(ConfigError, match=rf"^output: {path} cannot be used as a folder: \w"),
            locked_folder(path, "output", taken="busy"),
        ):
            pass


def test_a_process_that_is_killed_holds_no_lock(tmp_path: Path) -> None:
    """Its lock file stays, and means nothing."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="busy"), locked_folder(tmp_path, "output", taken="busy"):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        (tmp_path / "file").touch()

        with locked_folder(tmp_path, "output", taken="busy"):
            pass
