"""The built wheel, in environments with no more than it requires, beside folders that have general names."""

from __future__ import annotations

import json
import tarfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.end_to_end.environments import ROOT, Environment, build, make_environment, make_working_folder

CONFIG = """
name: letters
plugin: markov
data: {kind: text, files: letters.txt, held_out: 0.2}
tokenizer: {kind: bytes}
"""


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the source distribution."""
    return build(tmp_path_factory.mktemp("distributions"))


@pytest.fixture(scope="module")
def working_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every command runs."""
    folder = make_working_folder(tmp_path_factory.mktemp("working") / "folder")
    (folder / "letters.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 200)
    (folder / "letters.yaml").write_text(CONFIG)
    (folder / "series.csv").write_text("1\n2\n")
    return folder


@pytest.fixture(scope="module")
def environment(
    tmp_path_factory: pytest.TempPathFactory, distributions: tuple[Path, Path], working_folder: Path
) -> Callable[[str | None], Environment]:
    """Make the environment of `pip install 'statewise[EXTRA]'`, once each."""

    @cache
    def make(extra: str | None) -> Environment:
        return make_environment(tmp_path_factory.mktemp(extra or "base"), distributions[0], working_folder, extra)

    return make


@pytest.fixture(scope="module")
def base(environment: Callable[[str | None], Environment]) -> Environment:
    """`pip install statewise`."""
    return environment(None)


@pytest.fixture(scope="module")
def models(environment: Callable[[str | None], Environment]) -> Path:
    """A repository with two versions of a model: one trained and exported by the module, one by the script."""
    train = environment("train")
    for number, program in enumerate((train.module, train.script)):
        train.check(*program, "train", "letters.yaml", "--output", f"runs/{number}")
        train.check(*program, "export", f"runs/{number}", "--to", "models")
    return train.folder / "models"


def test_the_command_is_the_wheels(base: Environment) -> None:
    """The environment has the wheel's package, not the working copy's."""
    place = base.check(base.python, "-c", "import statewise; print(statewise.__file__)").strip()

    assert Path(place).is_relative_to(base.python.parents[1])


def test_the_base_has_no_runtime_and_no_torch(base: Environment) -> None:
    """Without an extra, what serves, trains and draws is not installed."""
    program = (
        "from importlib.util import find_spec\n"
        "from statewise.extras import EXTRAS\n"
        "print(sorted(name for names in EXTRAS.values() for name in names if find_spec(name)))"
    )

    assert base.check(base.python, "-c", program).strip() == "[]"


def test_every_public_name_is_in_the_base(base: Environment) -> None:
    """Clients and plugin authors need no extra to import what they use."""
    program = "import statewise\nfor name in statewise.__all__: getattr(statewise, name)"

    base.check(base.python, "-c", program)


@pytest.mark.parametrize("form", ["module", "script"])
def test_wheel_trains_exports_serves_and_generates(
    base: Environment, environment: Callable[[str], Environment], models: Path, tmp_path: Path, form: str
) -> None:
    """Beside the decoys each command runs; serving needs no PyTorch, and generating neither that nor ONNX Runtime."""
    assert sorted(path.name for path in (models / "letters").iterdir()) == ["1", "2"]
    server = environment("server")
    with server.serving(getattr(server, form), models, tmp_path) as address:
        options = ("--address", address, "--max-tokens", "8", "--temperature", "0", "--json")
        answer = json.loads(base.check(*getattr(base, form), "generate", "letters", "the", *options))

    assert len(answer["tokens"]) == 8
    assert answer["info"]["model"] == "letters"


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (("train", "letters.yaml"), "train"),
        (("import", "nowhere", "--output", "x"), "train"),
        (("export", "runs/0", "--to", "x"), "train"),
        (("verify", "models/letters"), "train"),
        (("serve", "--models", "models"), "server"),
        (("plot", "gradients"), "train"),
        (("plot", "attention", "letters", "text"), "plot"),
        (("plot", "gates", "letters", "text"), "plot"),
        (("forecast", "letters", "--file", "series.csv", "--horizon", "2", "--plot", "x.png"), "plot"),
        (("demo",), "demos"),
    ],
)
def test_base_says_what_installs_a_command(base: Environment, arguments: tuple[str, ...], extra: str) -> None:
    """Exit code 2, and one message with the extra; nothing is begun."""
    done = base.run(*base.module, *arguments)

    assert (done.returncode, done.stdout) == (2, ""), done.stdout + done.stderr
    assert f"this needs: pip install 'statewise[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command", ["generate", "predict", "score", "forecast", "models", "plot attention", "plot gates"]
)
def test_commands_of_the_client_need_no_extra(base: Environment, command: str) -> None:
    """Their help, for which they are imported, comes without any."""
    assert "--address" in base.check(*base.module, *command.split(), "--help")


def test_wheel_holds_the_packages_alone(distributions: tuple[Path, Path]) -> None:
    """Nothing is installed under a name that another project may have."""
    names = zipfile.ZipFile(distributions[0]).namelist()

    tops = {name.partition("/")[0] for name in names}
    packages = {"statewise", "statewise_server", "statewise_training", "statewise_export"}
    assert {top for top in tops if not top.endswith(".dist-info")} == packages
    typed = {name.partition("/")[0] for name in names if name.endswith("/py.typed")}
    assert typed == packages - {"statewise_training"}


def test_source_distribution_holds_what_is_needed_to_work_on_it(distributions: tuple[Path, Path]) -> None:
    """Protocols, tests, documents and examples are there, and nothing that a run has left."""
    with tarfile.open(distributions[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}

    tops = {name.partition("/")[0] for name in names if "/" in name}
    folders = {"statewise", "training", "server", "export", "protos", "tests", "benchmarks", "examples", "docs", ".ci"}
    assert tops == folders
    assert {"Makefile", "constraints.txt", "README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml"} <= names
    assert "protos/statewise/v1/generation.proto" in names
    assert [name for name in names if "__pycache__" in name or name.endswith(".so")] == []


def test_links_of_the_index_page_are_absolute(distributions: tuple[Path, Path]) -> None:
    """A link of README.md to a file of the repository leads there from the metadata as well."""
    archive = zipfile.ZipFile(distributions[0])
    (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    page = archive.read(metadata).decode()

    targets = [part.partition(")")[0] for part in page.split("](")[1:]]
    assert any(target.endswith("/docs/train.md") for target in targets)
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []
    files = [target.partition("/blob/main/")[2] for target in targets if "/blob/main/" in target]
    assert [file for file in files if not (ROOT / file.partition("#")[0]).exists()] == []
