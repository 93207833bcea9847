"""Files: writing them so that no reader, and no later run, ever sees half of one; reading text."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from statewise.errors import ConfigError


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that appears at `path` when the block ends, complete and on disk; never where it raises."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        with draft.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    _flush_folder(path.parent)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replace a file's content, at once."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def read_text(path: Path) -> str:
    """A file's UTF-8 text. Raises ConfigError."""
    try:
        content = path.read_bytes()
        return content.decode("utf-8").removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: not valid UTF-8 at byte {error.start} (0x{content[error.start]:02x}); "
            f"convert it first, such as: iconv -f LATIN1 -t UTF-8 {path.name}"
        ) from error


def check_picture_path(output: Path, *beside: Path) -> None:
    """Refuse a path at which no PNG can be written, or no file `beside` it, before the work begins.

    Raises ConfigError.
    """
    if output.suffix != ".png":
        raise ConfigError(f"output: {output} does not end in .png, which is what is written; add it")
    try:
        existing = next(folder for folder in output.absolute().parents if folder.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ConfigError(f"output: {output} cannot be written ({error.strerror}); give another path") from error
    for path in (output, *beside):
        if path.is_dir():
            raise ConfigError(f"output: {path} is a folder; give the path of a file that ends in .png")


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # where a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
