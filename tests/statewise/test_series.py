"""Reading one series from a file; tests/training/data/test_corpus.py has the cases of training data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from statewise.errors import ConfigError
from statewise.series import read_series


def test_a_series_comes_from_csv_npy_and_npz(tmp_path: Path) -> None:
    """The three formats give the same float32 `[time, features]`."""
    values = np.array([[1, 2], [3, 4.5]], np.float32)
    (tmp_path / "a.csv").write_text("x,y\n1,2\n3,4.5\n")
    np.save(tmp_path / "a.npy", values.astype(np.float64))
    np.savez(tmp_path / "a.npz", values=values)

    for path in tmp_path.iterdir():
        series = read_series(path)
        assert series.dtype == np.float32
        np.testing.assert_array_equal(series, values)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "must hold one array, holds none"),
        ({"a": np.zeros(2), "b": np.zeros(2)}, "must hold one array, holds a, b"),
        ({"a": np.zeros((2, 2, 2))}, r"must hold real numbers \[time, features\], got float64 \[2, 2, 2\]"),
        ({"a": np.array([{}], object)}, "not a readable .npz file of numbers"),
        ({"a": np.array([1.0, np.inf])}, "row 1, column 0 is inf; only finite numbers"),
    ],
)
def test_an_archive_holds_one_array_of_numbers(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    """Any other archive is refused with its name and its contents."""
    np.savez(tmp_path / "a.npz", **arrays)

    with pytest.raises(ConfigError, match=f"a.npz: {message}"):
        read_series(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("torn.npz", b"PK\x03\x04", "not a readable .npz file of numbers"),
        ("torn.npy", b"\x93NUMPY", "not a readable .npy file of numbers"),
        ("latin.csv", b"\xe9\n", "not valid UTF-8 at byte 0"),
        ("words.csv", b"1,2\n3,x\n", "line 2: 'x' is not a number; choose numeric columns with --columns"),
        ("plain.csv", b"1,2\n", "has no column 'high'"),
    ],
)
def test_a_file_that_is_no_series_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    """The message has the file and the flag that helps."""
    path = tmp_path / name
    path.write_bytes(content)

    with pytest.raises(ConfigError) as caught:
        read_series(path, ["high"] if name == "plain.csv" else None)

    assert str(path) in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere.csv", "nowhere.npy"])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    """Whatever its format."""
    with pytest.raises(ConfigError, match=f"{name} cannot be read: No such file or directory"):
        read_series(tmp_path / name)
