import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from statewise.bundles.reader import list_models, open_bundle
from statewise.bundles.writer import LOCK_FILE, BundleDraft, new_bundle
from statewise.errors import ConfigError, ParityError
from tests.small_bundles import CERTIFICATE, CONTENT, DATA, STEP, VARIANT, fill, write_bundle

# A writer that goes on until it is killed; argument: the repository.
WRITER = """
import sys
from pathlib import Path
from tests.small_bundles import write_bundle
print("ready", flush=True)
while True:
    write_bundle(Path(sys.argv[1]))
"""

RACER = """
import sys
from pathlib import Path
from tests.small_bundles import write_bundle
for _ in range(5):
    write_bundle(Path(sys.argv[1]))
"""


ROOT = Path(__file__).parents[3]
FILES = [STEP, DATA, CERTIFICATE, "manifest.json"]


def child(code: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT, stdout=subprocess.PIPE)


def leftovers(repository: Path) -> list[str]:
    return [path.name for path in repository.glob(".*") if path.name != LOCK_FILE]


def test_versions_count_upwards(tmp_path: Path) -> None:
    """Where no version is named, the next free number is taken; the folder holds the bundle's files only."""
    write_bundle(tmp_path, version=7)

    assert write_bundle(tmp_path) == tmp_path / "sum" / "8"
    assert sorted(path.name for path in (tmp_path / "sum" / "8").iterdir()) == sorted(FILES)
    assert leftovers(tmp_path) == []


def test_a_version_is_never_overwritten(tmp_path: Path) -> None:
    """Naming a version that exists is refused, and what is there stays as it is."""
    written = write_bundle(tmp_path, version=1)
    before = (written / "manifest.json").read_bytes()

    with pytest.raises(ConfigError, match="never overwritten"):
        write_bundle(tmp_path, version=1)

    assert (written / "manifest.json").read_bytes() == before


def test_a_version_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    """A bundle copied in by other means while ours was being written wins, and ours is removed."""
    other = write_bundle(tmp_path / "other")
    target = tmp_path / "sum" / "1"

    with pytest.raises(ConfigError, match="came to exist"):
        write_bundle(tmp_path, before_commit=lambda _: shutil.copytree(other, target))

    open_bundle(target)
    assert leftovers(tmp_path) == []


def test_a_draft_is_invisible_and_reserves_its_version(tmp_path: Path) -> None:
    """While a bundle is being written it is no model, and another writer gets the next number."""
    with new_bundle(tmp_path, "sum") as draft:
        fill(draft)

        assert list_models(tmp_path) == {}
        with pytest.raises(ConfigError, match="another process is writing sum/1"):
            write_bundle(tmp_path, version=1)
        assert write_bundle(tmp_path).name == "2"
        draft.commit(CONTENT)

    assert list_models(tmp_path) == {"sum": [1, 2]}


def test_an_abandoned_draft_is_removed(tmp_path: Path) -> None:
    """An export that fails, or misses its parity, leaves nothing behind."""
    with pytest.raises(ParityError):
        write_bundle(tmp_path, before_commit=_miss_parity)

    assert leftovers(tmp_path) == []
    assert list_models(tmp_path) == {}


def _miss_parity(draft: BundleDraft) -> None:
    raise ParityError(str(draft.folder))


def test_a_draft_can_be_previewed_without_its_certificate(tmp_path: Path) -> None:
    """The runtime can load what is to be certified, before there is a certificate."""
    with new_bundle(tmp_path, "sum") as draft:
        fill(draft)
        (draft.folder / CERTIFICATE).unlink()

        assert draft.preview(CONTENT).path(STEP).is_file()


@pytest.mark.parametrize("name", [STEP, DATA, CERTIFICATE])
def test_a_bundle_without_one_of_its_files_is_not_committed(tmp_path: Path, name: str) -> None:
    """A manifest that names a file which was not written is refused, and with it the bundle."""
    with pytest.raises(ConfigError, match=f"not listed with a hash: {name}"):
        write_bundle(tmp_path, before_commit=lambda draft: (draft.folder / name).unlink())

    assert list_models(tmp_path) == {}


@pytest.mark.parametrize("name", ["", ".sum", "a/b", "..", "ü"])
def test_a_name_that_no_model_can_have_is_refused(tmp_path: Path, name: str) -> None:
    """A model's name must be usable as a folder's name everywhere."""
    with pytest.raises(ConfigError, match="cannot be a model's name"):
        write_bundle(tmp_path, name)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), Path("x")])
def test_what_json_cannot_hold_is_refused(tmp_path: Path, value: object) -> None:
    """NaN in a plugin's configuration would be read back as something else, so it is refused."""
    with pytest.raises(ConfigError, match="plugin_config"):
        write_bundle(tmp_path, content=replace(CONTENT, plugin_config={"rate": value}))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failing_disk_is_a_config_error(tmp_path: Path, code: int) -> None:
    """A disk error that the exporter meets while filling the draft is explained, and the draft removed."""
    with pytest.raises(ConfigError, match=os.strerror(code)), new_bundle(tmp_path, "sum"):
        raise OSError(code, os.strerror(code), "weights")

    assert leftovers(tmp_path) == []


def test_a_read_only_repository_is_a_config_error(tmp_path: Path) -> None:
    """A repository that is a file cannot be written to, and is named."""
    (tmp_path / "file").write_text("x")

    with pytest.raises(ConfigError, match=r"cannot write to .*file"):
        write_bundle(tmp_path / "file")


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("when", [1, 3, 5])
def test_a_failing_fsync_publishes_nothing(tmp_path: Path, when: int) -> None:
    """EIO from any fsync before the rename ends the export readably, with no bundle to see."""
    code = (
        "import sys; from pathlib import Path; from statewise.errors import ConfigError\n"
        "from tests.small_bundles import write_bundle\n"
        "try: write_bundle(Path(sys.argv[1]))\n"
        "except ConfigError as error: print(error); sys.exit(2)"
    )
    inject = [
        "strace",
        "-f",
        "-qq",
        "-o",
        os.devnull,
        "-e",
        "trace=fsync",
        "-e",
        f"inject=fsync:error=EIO:when={when}",
    ]
    done = subprocess.run(
        [*inject, sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout.count("Input/output error")) == (2, 1), done
    assert list_models(tmp_path) == {}
    assert leftovers(tmp_path) == []


def test_a_killed_writer_leaves_no_half_bundle(tmp_path: Path) -> None:
    """However a writer is killed, every visible version is whole, and the next writer clears up."""
    moments = random.Random(7)
    for _ in range(6):
        with child(WRITER, str(tmp_path)) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(moments.uniform(0.0, 0.03))
            writer.send_signal(signal.SIGKILL)
        for version in list_models(tmp_path).get("sum", []):
            open_bundle(tmp_path / "sum" / str(version))
        write_bundle(tmp_path)

        assert leftovers(tmp_path) == []


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize(
    ("call", "when"),
    [
        ("mkdir", 2),
        ("openat", 2),
        ("write", 1),
        ("write", 4),
        ("fsync", 1),
        ("fsync", 5),
        ("mkdir", 3),
        ("rename", 1),
        ("fsync", 6),
        ("fsync", 7),
    ],
)
def test_a_writer_killed_at_a_system_call_leaves_no_half_bundle(tmp_path: Path, call: str, when: int) -> None:
    """Killed at any call that changes the repository, a writer leaves a hidden draft at most."""
    repository = tmp_path / "models"
    draft = repository / ".sum.1.draft"
    # strace counts only the calls on these paths.
    paths = [repository, repository / "sum", draft, *(draft / name for name in FILES)]
    command = [
        "strace",
        "-f",
        "-qq",
        "-o",
        os.devnull,
        *(part for path in paths for part in ("-P", str(path))),
    ]
    command += ["-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={when}"]
    done = subprocess.run([*command, sys.executable, "-c", RACER, str(repository)], cwd=ROOT, check=False)
    assert done.returncode != 0, "the call was not hit, so nothing was tested"

    versions = list_models(repository).get("sum", [])
    for version in versions:
        open_bundle(repository / "sum" / str(version))
    write_bundle(repository)

    assert len(list_models(repository)["sum"]) == len(versions) + 1
    assert leftovers(repository) == []


def test_writers_race_without_loss(tmp_path: Path) -> None:
    """Processes and threads that export the same model at once each get a version of their own."""
    racers = [child(RACER, str(tmp_path)) for _ in range(2)]
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: write_bundle(tmp_path), range(10)))
    assert [racer.wait() for racer in racers] == [0, 0]

    versions = list_models(tmp_path)["sum"]
    assert len(set(paths)) == 10
    assert len(versions) == 20
    for version in versions:
        assert open_bundle(tmp_path / "sum" / str(version)).variant_files(VARIANT)
