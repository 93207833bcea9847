import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statewise.bundles.manifest_file import MANIFEST_FILE
from statewise.bundles.reader import find_bundle, hash_file, list_models, open_bundle, resolve_bundle
from statewise.errors import BundleError, ConfigError, NotFoundError
from tests.small_bundles import CERTIFICATE, DATA, STEP, VARIANT, write_bundle

FILES = [STEP, DATA, CERTIFICATE, MANIFEST_FILE]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("models"))


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    """Copy the bundle, so that a test may damage it."""
    return shutil.copytree(good, tmp_path / "sum" / "1")


def test_a_written_bundle_opens(good: Path) -> None:
    """What was written is read back: the name, the version, and the files with their hashes."""
    bundle = open_bundle(good)

    assert str(bundle) == "sum/1"
    assert bundle.path(STEP).read_bytes().startswith(b"\x08\x0a")
    assert bundle.variant_files(VARIANT) == {STEP: hash_file(good / STEP), DATA: hash_file(good / DATA)}


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(FILES), place=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255))
def test_a_flipped_byte_is_refused(good: Path, name: str, place: float, mask: int) -> None:
    """Any change of any byte of any file is seen, and the file named."""
    path = good / name
    intact = path.read_bytes()
    damaged = bytearray(intact)
    damaged[int(place * len(damaged))] ^= mask
    path.write_bytes(damaged)
    try:
        with pytest.raises(BundleError, match=f"^{name}: "):
            open_bundle(good)
    finally:
        path.write_bytes(intact)


def test_no_byte_of_the_manifest_is_without_meaning(good: Path) -> None:
    """Each byte of manifest.json, spaces and line ends included, is covered by its digest."""
    path = good / MANIFEST_FILE
    intact = path.read_bytes()
    try:
        for position, byte in enumerate(intact):
            for other in {byte ^ 0x20, 0x20, 0x0A} - {byte}:
                path.write_bytes(intact[:position] + bytes([other]) + intact[position + 1 :])
                with pytest.raises(BundleError, match=r"^manifest\.json: "):
                    open_bundle(good)
    finally:
        path.write_bytes(intact)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    """A bundle without one of its files is refused."""
    (copy / name).unlink()

    with pytest.raises(BundleError, match=f"^{name}: .*missing"):
        open_bundle(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_or_longer_file_is_named(copy: Path, name: str) -> None:
    """A file that lost its end, or got a longer one, is refused."""
    intact = (copy / name).read_bytes()
    for content in (intact[:-1], b"", intact + b"\n"):
        (copy / name).write_bytes(content)

        with pytest.raises(BundleError, match=f"^{name}: "):
            open_bundle(copy)


def _replace_by_link(path: Path) -> None:
    shutil.move(path, path.parent.parent / "elsewhere")
    path.symlink_to("../elsewhere")


def _replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_replace_by_link, "symbolic link"),
        (_replace_by_folder, "folder"),
        (_replace_by_pipe, "special file"),
        (lambda path: path.parent.parent.joinpath("other").hardlink_to(path), "hard link"),
    ],
)
@pytest.mark.parametrize("name", FILES)
def test_only_plain_files_of_one_name_are_taken(
    copy: Path, name: str, change: Callable[[Path], None], reason: str
) -> None:
    """A link, a folder or a pipe in the place of a file is refused, even with the right content."""
    change(copy / name)

    with pytest.raises(BundleError, match=f"^{name}: .*{reason}"):
        open_bundle(copy)


@pytest.mark.parametrize("name", ["notes.txt", ".hidden"])
def test_a_file_too_many_is_named(copy: Path, name: str) -> None:
    """A file that the manifest does not list is refused, hidden or not."""
    (copy / name).write_text("x")

    with pytest.raises(BundleError, match=rf"^{name}: .*not listed"):
        open_bundle(copy)


@pytest.mark.parametrize("place", ["sum/2", "other/1"])
def test_a_bundle_under_another_name_is_refused(good: Path, tmp_path: Path, place: str) -> None:
    """The folders' names and the manifest must agree, so that a copy cannot pose as another version."""
    moved = shutil.copytree(good, tmp_path / place)

    with pytest.raises(BundleError, match=f"describes sum/1, but lies in {place}"):
        open_bundle(moved)


def test_a_missing_folder_is_a_bundle_error(tmp_path: Path) -> None:
    """Opening what does not exist says so, without a traceback's OSError."""
    with pytest.raises(BundleError, match="No such file"):
        open_bundle(tmp_path / "nothing" / "1")


def test_models_are_listed_oldest_version_first(tmp_path: Path) -> None:
    """Versions are numbers, not text; what is no model or no version is passed over."""
    for folder in ("gru/2", "gru/10", "gru/latest", "gru/01", "gru/.3", ".draft/1", "empty", "a b/1"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "README.md").write_text("x")

    assert list_models(tmp_path) == {"gru": [2, 10]}


def test_listing_an_absent_repository_is_a_config_error(tmp_path: Path) -> None:
    """A mistyped folder is not an empty repository."""
    with pytest.raises(ConfigError, match="No such file"):
        list_models(tmp_path / "nothing")


def test_find_bundle_names_what_exists(tmp_path: Path) -> None:
    """The newest version is found; a wrong name or number is answered with the right ones."""
    for folder in ("gru/2", "gru/10"):
        (tmp_path / folder).mkdir(parents=True)

    assert find_bundle(tmp_path, "gru") == tmp_path / "gru" / "10"
    assert find_bundle(tmp_path, "gru", 2) == tmp_path / "gru" / "2"
    with pytest.raises(NotFoundError, match=r"no model 'lstm'.*gru"):
        find_bundle(tmp_path, "lstm")
    with pytest.raises(NotFoundError, match=r"no version 3.*2, 10"):
        find_bundle(tmp_path, "gru", 3)


def test_resolve_bundle_takes_a_bundle_or_a_model(good: Path, tmp_path: Path) -> None:
    """A user may name a version's folder or the model's."""
    assert resolve_bundle(good) == good
    assert resolve_bundle(good.parent) == good
    for wrong in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(NotFoundError):
            resolve_bundle(wrong)
