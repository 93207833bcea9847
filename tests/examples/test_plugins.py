"""Plugins from outside: the two examples, and the one that docs/plugins.md writes, each a package of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest

from statewise import Client
from statewise.bundles.reader import find_bundle, open_bundle
from statewise_server.app import Application
from tests.serving import running_server

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"

MAKE_BUNDLES = """
from statewise.cli import main

def run(*arguments):
    try:
        main(arguments)
    except SystemExit as end:
        assert not end.code, arguments

for name in ("conv", "digits", "words"):
    settings = ("--set", "trainer.max_steps=2", "--set", "trainer.allow_diverged=true")
    run("train", f"{name}.yaml", *settings, "--output", f"runs/{name}")
    run("export", f"runs/{name}", "--to", "models")
"""


class Outside(NamedTuple):
    """What the packages did while they were installed."""

    models: Path
    data: Path
    found: set[str]
    found_after: set[str]
    """Plugins, when the packages' folder was gone again."""


def files_of_the_page() -> dict[str, str]:
    """The files that docs/plugins.md shows, by their paths."""
    page = (ROOT / "docs" / "plugins.md").read_text()
    return dict(re.findall(r"^`([\w./-]+)`\n\n```\w+\n(.*?)^```", page, re.MULTILINE | re.DOTALL))


def run(folder: Path, *arguments: str, packages: Path) -> str:
    """Run Python in a folder, with packages that are installed in another one."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(packages), str(ROOT)])}
    command = [sys.executable, "-P", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def plugins_found(folder: Path, packages: Path) -> set[str]:
    """Names of the plugins that a new process finds."""
    code = "from statewise.plugins import available_plugins; print(*available_plugins())"
    return set(run(folder, "-c", code, packages=packages).split())


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Outside:
    """Install the three packages, train and export with each, and remove them."""
    folder = tmp_path_factory.mktemp("outside")
    packages = folder / "packages"
    for path, content in files_of_the_page().items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)
    for name, configuration in (("plugin_vit", "digits.yaml"), ("plugin_aae", "words.yaml")):
        shutil.copytree(EXAMPLES / name, folder / name)
        shutil.copy(EXAMPLES / name / configuration, folder)
    sources = [str(folder / name) for name in ("statewise-conv", "plugin_vit", "plugin_aae")]
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    run(folder, "-m", "pip", "install", *offline, "--target", str(packages), *sources, packages=packages)
    found = plugins_found(folder, packages)
    run(folder, "-m", "statewise_vit.digits", ".", packages=packages)
    run(folder, "-m", "statewise_aae.words", "words.jsonl", packages=packages)
    run(folder, "-c", MAKE_BUNDLES, packages=packages)
    shutil.rmtree(packages)
    return Outside(folder / "models", folder, found, plugins_found(folder, packages))


@pytest.fixture(scope="module")
def server(outside: Outside) -> Iterator[Application]:
    """Serve what they left, now that they are gone."""
    with running_server(models=outside.models) as application:
        yield application


def test_page_stays_under_100_lines_of_code() -> None:
    """docs/plugins.md teaches a plugin in fewer than 100 lines."""
    files = files_of_the_page()

    assert set(files) == {"statewise-conv/pyproject.toml", "statewise-conv/statewise_conv/__init__.py", "conv.yaml"}
    assert sum(len(content.splitlines()) for content in files.values()) < 100


def test_packages_add_plugins_and_leave_no_trace(outside: Outside) -> None:
    """A package's plugins are found while it is installed, and no longer."""
    assert outside.found - outside.found_after == {"conv", "vit", "aae"}
    assert outside.found_after >= {"markov", "transformer"}


def test_family_of_the_page_generates(server: Application) -> None:
    """The model that docs/plugins.md trains streams from a server on which its plugin is not installed."""
    with Client(server.address, timeout=60) as client:
        generation = client.generate("conv", "Lists are ", max_tokens=5, temperature=0.8, seed=1)

    assert len(generation.tokens) == 5


def test_images_get_a_label(server: Application, outside: Outside) -> None:
    """The Vision Transformer names each image of a request, with a probability for each class."""
    with np.load(outside.data / "test.npz") as test:
        images = list(test["items"][:3])
    with Client(server.address, timeout=60) as client:
        predictions = client.predict("digits", images)

    assert [prediction.label in set("0123456789") for prediction in predictions] == [True] * 3
    assert [sum(prediction.probabilities.values()) for prediction in predictions] == pytest.approx([1, 1, 1])


def test_string_to_vector_and_back(server: Application) -> None:
    """The autoencoder gives a vector for a string, and a string for a vector."""
    with Client(server.address, timeout=60) as client:
        (prediction,) = client.predict("words", ["statement"])
        generation = client.generate("words", "", source=prediction.embedding[None], max_tokens=12)

    assert prediction.embedding.shape == (32,)
    assert 1 <= generation.usage.completion_tokens <= 12


def test_discriminator_is_in_no_graph(outside: Outside) -> None:
    """What only training needs is not exported."""
    bundle = open_bundle(find_bundle(outside.models, "words"))
    (variant,) = bundle.manifest.variants.values()
    weights = [
        tensor.name
        for name in variant.graphs
        for tensor in onnx.load(bundle.folder / name, load_external_data=False).graph.initializer
    ]

    assert any("decoder" in name for name in weights)
    assert not any("discriminator" in name for name in weights)
