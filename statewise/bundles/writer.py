"""Writing a bundle so that no reader ever sees half of one.

A bundle grows in a draft, `<repository>/.<model>.<version>.draft`, and is renamed into its place when it is
complete and on disk. A lock file beside it, `<draft>.lock`, reserves the version for as long as its writer lives.
A draft whose lock nobody holds is left over from a crash, and the next writer removes it.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from statewise.bundles.manifest import Manifest, SpecialTokens, Variant
from statewise.bundles.manifest_file import MANIFEST_FILE, describe, encode_manifest
from statewise.bundles.reader import Bundle, hash_file, is_model_name, list_versions
from statewise.errors import ConfigError
from statewise.model.spec import ModelSpec

LOCK_FILE = ".lock"
_DRAFT = re.compile(r"\.(?P<name>.+)\.(?P<version>[0-9]+)\.draft(\.lock)?")
_NOT_YET_WRITTEN = "0" * 64
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG}


@dataclass(frozen=True, kw_only=True)
class BundleContent:
    """Content of a manifest beside the model's name, its version and the files' hashes."""

    plugin: str
    plugin_config: dict[str, Any]
    model: ModelSpec
    variants: dict[str, Variant]
    created_with: dict[str, str]
    special_tokens: SpecialTokens = field(default_factory=SpecialTokens)
    tokenizer: str | None = None


class BundleDraft:
    """A bundle that is being written. Put the files into `folder`, then `commit`."""

    def __init__(self, repository: Path, name: str, version: int) -> None:
        self.name = name
        self.version = version
        self.folder = _draft_folder(repository, name, version)
        self.target = repository / name / str(version)
        self.committed = False

    def preview(self, content: BundleContent) -> Bundle:
        """Return the bundle as it stands, for the runtime that certifies it; certificates may be missing."""
        files = self._hashes()
        for variant in content.variants.values():
            files.setdefault(variant.certificate, _NOT_YET_WRITTEN)
        return Bundle(self.folder, self._manifest(content, files))

    def commit(self, content: BundleContent) -> Path:
        """Complete the bundle and move it to its place, which is returned.

        Raises ConfigError where a file is missing, the disk fails, or the version came to exist meanwhile.
        """
        with _writing(self.folder):
            manifest = self._manifest(content, self._hashes())
            (self.folder / MANIFEST_FILE).write_bytes(_encode(manifest))
            self._flush()
            self._publish()
        self.committed = True
        return self.target

    def _hashes(self) -> dict[str, str]:
        paths = sorted(self.folder.iterdir())
        return {path.name: hash_file(path) for path in paths if path.name != MANIFEST_FILE}

    def _manifest(self, content: BundleContent, files: dict[str, str]) -> Manifest:
        try:
            return Manifest(name=self.name, version=self.version, files=files, **vars(content))
        except ValidationError as error:
            raise ConfigError(f"bundle {self.name}/{self.version}: {describe(error)}") from error

    def _flush(self) -> None:
        for path in self.folder.iterdir():
            _fsync(path)
        _fsync(self.folder)

    def _publish(self) -> None:
        self.target.parent.mkdir(exist_ok=True)
        try:
            self.folder.rename(self.target)
        except OSError as error:
            if error.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
                raise ConfigError(
                    f"{self.target} came to exist meanwhile, and was left as it is. Export again."
                ) from error
            raise
        _fsync(self.target.parent)
        _fsync(self.target.parent.parent)


@contextmanager
def new_bundle(repository: Path, name: str, version: int | None = None) -> Iterator[BundleDraft]:
    """Draft a new version of a model: the next free number, unless one is named.

    A draft that is not committed is removed. Raises ConfigError for a name that no model can have, a version
    that exists or is being written, and a disk that is full or failing.
    """
    if not is_model_name(name):
        raise ConfigError(f"{name!r} cannot be a model's name: letters, digits and . _ -, a letter or digit first")
    with ExitStack() as stack:
        with _writing(repository):
            repository.mkdir(parents=True, exist_ok=True)
            # One writer at a time reserves a version and clears up after the dead.
            with FileLock(repository / LOCK_FILE):
                draft = BundleDraft(repository, name, _free_version(repository, name, version))
                _lock_draft(draft.folder, stack)
                draft.folder.mkdir()
        try:
            with _disk_errors(repository):
                yield draft
        finally:
            if not draft.committed:
                shutil.rmtree(draft.folder, ignore_errors=True)


def _free_version(repository: Path, name: str, wanted: int | None) -> int:
    drafts = _living_drafts(repository, name)
    versions = list_versions(repository, name)
    if wanted is None:
        return max([0, *versions, *drafts]) + 1
    if wanted < 1:
        raise ConfigError(f"version: must be 1 or more, got {wanted}")
    if wanted in versions:
        raise ConfigError(f"version: {repository / name / str(wanted)} exists, and is never overwritten")
    if wanted in drafts:
        raise ConfigError(f"version: another process is writing {name}/{wanted} in {repository}")
    return wanted


def _living_drafts(repository: Path, name: str) -> list[int]:
    """Return the model's versions being written now; remove drafts, of any model, whose writer has died."""
    living = []
    for draft_name, version in {(m["name"], int(m["version"])) for m in map(_DRAFT.fullmatch, _names(repository)) if m}:
        folder = _draft_folder(repository, draft_name, version)
        # One that is committed meanwhile is gone, and found as a version: those are listed after the drafts.
        with ExitStack() as stack:
            if _lock_draft(folder, stack):
                shutil.rmtree(folder, ignore_errors=True)
            elif draft_name == name:
                living.append(version)
    return living


def _names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()]


def _draft_folder(repository: Path, name: str, version: int) -> Path:
    return repository / f".{name}.{version}.draft"


def _lock_draft(folder: Path, stack: ExitStack) -> bool:
    """Lock a draft until the stack closes or the process ends, however it ends; False if it is taken."""
    file = folder.with_name(f"{folder.name}.lock")
    try:
        stack.enter_context(FileLock(file, blocking=False))
    except Timeout:
        return False
    # Before its release, so that nobody else can hold the file that goes.
    stack.callback(file.unlink, missing_ok=True)
    return True


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"cannot write to {error.filename or place}: {error.strerror}") from error


@contextmanager
def _disk_errors(repository: Path) -> Iterator[None]:
    """Explain a full or failing disk that the caller meets; the caller's other errors are its own."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise ConfigError(f"cannot write to {error.filename or repository}: {error.strerror}") from error


def _encode(manifest: Manifest) -> bytes:
    try:
        return encode_manifest(manifest)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"bundle {manifest.name}/{manifest.version}: plugin_config: {error}") from error


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
