"""Bundles on disk, `<repository>/<model>/<version>/`: opened only if every byte is the one written."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from statewise.bundles.manifest import Manifest, ModelName, Variant
from statewise.bundles.manifest_file import MANIFEST_FILE, MAX_MANIFEST_BYTES, decode_manifest
from statewise.errors import BundleError, ConfigError, NotFoundError
from statewise.model.spec import ModelSpec

_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_model_name = TypeAdapter(ModelName)


@dataclass(frozen=True)
class Bundle:
    """A bundle and the folder that it lies in."""

    folder: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        """Return where a file of the bundle lies. Raises BundleError for a name not in the manifest."""
        if name not in self.manifest.files:
            raise BundleError(f"{name}: not a file of bundle {self}")
        return self.folder / name

    def variant(self, name: str) -> Variant:
        """Return the variant of that name. Raises BundleError, naming those that exist."""
        variants = self.manifest.variants
        if name not in variants:
            raise BundleError(f"bundle {self} has no variant {name!r} (it has: {', '.join(variants)})")
        return variants[name]

    def spec(self, variant_name: str) -> ModelSpec:
        """Return the model as a variant runs it: its state in the variant's own type."""
        return self.manifest.model.with_state_dtype(self.variant(variant_name).state_dtype)

    def variant_files(self, name: str) -> dict[str, str]:
        """Return the sha256 of each graph and weight file of a variant: what its certificate speaks for."""
        variant = self.variant(name)
        return {file: self.manifest.files[file] for file in (*variant.graphs, *variant.data)}

    def __str__(self) -> str:
        return f"{self.manifest.name}/{self.manifest.version}"


def open_bundle(folder: Path, *, check_hashes: bool = True) -> Bundle:
    """Open the bundle in this folder, after checking its manifest and every file.

    Without `check_hashes` the content of the files is taken as it is, for a caller that has just checked it.
    Raises BundleError, naming the file and what is wrong with it.
    """
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 # resolve() would follow links and so change the name
    with _reading(folder):
        names = _regular_files(folder)
        if MANIFEST_FILE not in names:
            raise BundleError(f"{MANIFEST_FILE}: missing from {folder}, so this is no bundle")
        manifest = decode_manifest(_read_manifest(folder / MANIFEST_FILE))
        _check_place(manifest, folder)
        _check_listing(manifest, names - {MANIFEST_FILE})
        if check_hashes:
            _check_hashes(manifest, folder)
    return Bundle(folder, manifest)


def hash_file(path: Path) -> str:
    """Return the sha256 of a file, in constant memory."""
    # O_NOFOLLOW: a link put there since the folder was listed is an error, not another file.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123 # a descriptor has no path
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_models(repository: Path) -> dict[str, list[int]]:
    """Return the versions of each model, oldest first. Raises ConfigError for an unreadable folder."""
    try:
        folders = sorted(entry.name for entry in repository.iterdir() if is_model_name(entry.name))
        versions = {name: list_versions(repository, name) for name in folders}
    except OSError as error:
        raise ConfigError(f"model repository {repository}: {error.strerror}") from error
    return {name: found for name, found in versions.items() if found}


def list_versions(repository: Path, name: str) -> list[int]:
    """Return the versions of one model, oldest first; none where there is no such model."""
    folder = repository / name
    if not folder.is_dir():
        return []
    # Looked at by name only: whether such a folder holds a bundle is for open_bundle to say.
    return sorted(int(entry.name) for entry in folder.iterdir() if _VERSION.fullmatch(entry.name))


def find_bundle(repository: Path, name: str, version: int | None = None) -> Path:
    """Return a version's folder, the newest if none is named. Raises NotFoundError, naming what exists."""
    models = list_models(repository)
    if name not in models:
        known = ", ".join(models) or "none"
        raise NotFoundError(f"no model {name!r} in {repository} (models there: {known})")
    if version is None:
        version = models[name][-1]
    elif version not in models[name]:
        known = ", ".join(map(str, models[name]))
        raise NotFoundError(f"model {name!r} has no version {version} in {repository} (versions there: {known})")
    return repository / name / str(version)


def resolve_bundle(path: Path) -> Path:
    """Return the bundle that a user means: the path itself, or the newest version in a model's folder."""
    path = Path(os.path.abspath(path))  # noqa: PTH100 # as in open_bundle
    if not path.is_dir():
        raise NotFoundError(f"{path}: no such folder")
    if (path / MANIFEST_FILE).exists() or _VERSION.fullmatch(path.name):
        return path
    with _reading(path):
        versions = list_versions(path.parent, path.name)
    if not versions:
        raise NotFoundError(f"{path}: neither a bundle (no {MANIFEST_FILE}) nor a model with a version in it")
    return path / str(versions[-1])


def is_model_name(name: str) -> bool:
    """Tell whether a folder of this name can be a model; one that starts with a dot never is."""
    try:
        _model_name.validate_python(name)
    except ValidationError:
        return False
    return True


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        culprit = Path(error.filename).name if error.filename else str(folder)
        raise BundleError(f"{culprit}: cannot be read in {folder}: {error.strerror}") from error


def _regular_files(folder: Path) -> set[str]:
    """Return the names in the folder; what is not a plain file of one name could lead elsewhere: refused."""
    with os.scandir(folder) as entries:
        found = {entry.name: entry.stat(follow_symlinks=False) for entry in entries}
    for name, status in sorted(found.items()):
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{name}: is a {_file_type(status.st_mode)}; a bundle holds plain files only")
        if status.st_nlink > 1:
            raise BundleError(f"{name}: is a hard link to a file with another name; copy the bundle instead")
    return set(found)


def _file_type(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "symbolic link"
    return "folder" if stat.S_ISDIR(mode) else "special file"


def _read_manifest(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MAX_MANIFEST_BYTES + 1)
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{MANIFEST_FILE}: larger than {MAX_MANIFEST_BYTES} bytes")
    return data


def _check_place(manifest: Manifest, folder: Path) -> None:
    if (folder.parent.name, folder.name) != (manifest.name, str(manifest.version)):
        raise BundleError(
            f"{MANIFEST_FILE}: describes {manifest.name}/{manifest.version}, but lies in "
            f"{folder.parent.name}/{folder.name}; rename the folders to match"
        )


def _check_listing(manifest: Manifest, names: set[str]) -> None:
    missing = sorted(manifest.files.keys() - names)
    if missing:
        raise BundleError(f"{', '.join(missing)}: listed in {MANIFEST_FILE}, but missing from the folder")
    extra = sorted(names - manifest.files.keys())
    if extra:
        raise BundleError(f"{', '.join(extra)}: in the folder, but not listed in {MANIFEST_FILE}; remove it")


def _check_hashes(manifest: Manifest, folder: Path) -> None:
    for name, expected in manifest.files.items():
        if hash_file(folder / name) != expected:
            raise BundleError(f"{name}: changed since it was written (its sha256 is not the one in {MANIFEST_FILE})")
