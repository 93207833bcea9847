"""Folders that one process at a time works in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from statewise.errors import ConfigError

LOCK_FILE = ".lock"


@contextmanager
def locked_folder(folder: Path, option: str, *, taken: str) -> Iterator[None]:
    """Keep a folder, made if need be, to this process until the block ends, or the process does.

    Raises ConfigError, beginning with the option that names the folder: with the message `taken` where another process
    is at work there, or with the reason why the folder cannot be used.
    """
    file = folder / LOCK_FILE
    lock = FileLock(file, blocking=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise ConfigError(f"{option}: {taken}") from error
    except OSError as error:
        raise ConfigError(f"{option}: {folder} cannot be used as a folder: {error.strerror}") from error
    try:
        yield
    finally:
        # While it is held, so that nobody else can hold the file that goes.
        with suppress(OSError):
            file.unlink()
        lock.release()
        # A folder in which nothing was written is not left behind.
        with suppress(OSError):
            folder.rmdir()
