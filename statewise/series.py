"""Reading series of real vectors from files, with errors that name the file and the line or row."""

from __future__ import annotations

import csv
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from statewise.errors import ConfigError
from statewise.files import read_text

Series = NDArray[np.float32]


def read_series(path: Path, columns: Sequence[str] | None = None, *, setting: str = "--columns") -> Series:
    """One series, float32 `[time, features]`, from a .npy file, a .npz file of one array, or else a CSV file.

    columns: of a CSV file with a header, those to read, in this order; `setting` is what errors call them.
    Raises ConfigError.
    """
    is_array = path.suffix in (".npy", ".npz")
    values = _read_array(path) if is_array else _read_csv(path, columns, setting)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = bad[0]
        raise ConfigError(
            f"{path}: row {row}, column {column} is {values[row, column]}; only finite numbers can be read"
        )
    return values


def _read_array(path: Path) -> Series:
    try:
        loaded = np.load(path, allow_pickle=False)
        values = _only_array(path, loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else loaded
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path}: not a readable {path.suffix} file of numbers: {error}") from error
    if values.dtype.kind not in "fiu" or values.ndim not in (1, 2):
        raise ConfigError(f"{path}: must hold real numbers [time, features], got {values.dtype} {list(values.shape)}")
    return values.reshape(len(values), -1).astype(np.float32)


def _only_array(path: Path, archive: np.lib.npyio.NpzFile) -> NDArray[np.generic]:
    with archive:
        if len(archive.files) != 1:
            raise ConfigError(f"{path}: must hold one array, holds {', '.join(archive.files) or 'none'}")
        array: NDArray[np.generic] = archive[archive.files[0]]
        return array


def _read_csv(path: Path, columns: Sequence[str] | None, setting: str) -> Series:
    rows = [
        (number, row)
        for number, row in enumerate(csv.reader(read_text(path).splitlines()), start=1)
        if any(cell.strip() for cell in row)
    ]
    if not rows:
        raise ConfigError(f"{path}: holds no rows")
    header = None if _is_numeric(rows[0][1]) else [cell.strip() for cell in rows[0][1]]
    chosen = _choose_columns(path, header, columns, setting)
    rows = rows[1:] if header else rows
    if not rows:
        raise ConfigError(f"{path}: holds no rows below its header")
    width = len(header or rows[0][1])
    values = [_parse_row(row, width, chosen, f"{path}, line {number}", setting) for number, row in rows]
    return np.array(values, np.float32)


def _is_numeric(row: Sequence[str]) -> bool:
    try:
        [float(cell) for cell in row]
    except ValueError:
        return False
    return True


def _choose_columns(
    path: Path, header: list[str] | None, columns: Sequence[str] | None, setting: str
) -> list[int] | None:
    if columns is None:
        return None
    missing = [column for column in columns if column not in (header or [])]
    if missing:
        known = ", ".join(header) if header else "none, its first line holds numbers"
        raise ConfigError(f"{setting}: {path} has no column {missing[0]!r} (columns: {known})")
    return [header.index(column) for column in columns] if header else None


def _parse_row(row: Sequence[str], width: int, chosen: list[int] | None, place: str, setting: str) -> list[float]:
    if len(row) != width:
        raise ConfigError(f"{place}: has {len(row)} cells, expected {width}")
    cells = [row[index] for index in chosen] if chosen is not None else row
    values = []
    for cell in cells:
        try:
            values.append(float(cell))
        except ValueError as error:
            raise ConfigError(f"{place}: {cell!r} is not a number; choose numeric columns with {setting}") from error
    if not all(math.isfinite(value) for value in values):
        raise ConfigError(f"{place}: only finite numbers can be read, got {', '.join(cells)}")
    return values
