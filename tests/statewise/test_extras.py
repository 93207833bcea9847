"""The extras as users are told of them, and as pyproject.toml has them."""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from statewise.extras import EXTRAS, explain_missing, is_installed, packages_of

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def requirements(extra: str) -> list[Requirement]:
    """The requirements of an extra on this machine."""
    found = [Requirement(text) for text in PROJECT["optional-dependencies"][extra]]
    return [requirement for requirement in found if requirement.marker is None or requirement.marker.evaluate()]


@pytest.mark.parametrize("extra", [extra for extra in EXTRAS if extra != "ray"])
def test_packages_of_an_extra_are_those_of_pyproject(extra: str) -> None:
    """Each package comes with a distribution that the extra requires, and each such distribution has one."""
    distributions = {
        package: {canonicalize_name(name) for name in names} for package, names in packages_distributions().items()
    }
    required = {canonicalize_name(requirement.name) for requirement in requirements(extra)} - {"statewise"}

    assert set().union(*(distributions[package] for package in EXTRAS[extra])) == required


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_includes_the_extras_that_pyproject_includes(extra: str) -> None:
    """`packages_of` follows the extras that require Statewise with further extras."""
    included = {other for found in requirements(extra) if found.name == "statewise" for other in found.extras}
    packages = {package for name in {extra, *included} for package in packages_of(name)}

    assert set(packages_of(extra)) == packages


def test_an_extra_is_installed_where_all_its_packages_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """One missing package, even of an included extra, and it is not."""
    assert is_installed("demos")

    monkeypatch.setitem(sys.modules, "tokenizers", None)

    assert (is_installed("demos"), is_installed("plot")) == (False, True)


@pytest.mark.parametrize(
    ("package", "extra", "wanted"),
    [("torch.nn", None, "train"), ("yaml", None, "server"), ("yaml", "train", "train"), ("torch", "server", "train")],
)
def test_a_missing_package_is_explained(package: str, extra: str | None, wanted: str) -> None:
    """The extra that the caller needs is named where the package comes with it, else the package's own."""
    message = explain_missing(ModuleNotFoundError(name=package), extra)

    assert message is not None
    assert message.endswith(f"this needs: pip install 'statewise[{wanted}]'")


def test_a_package_of_no_extra_is_not_explained() -> None:
    """A package that Statewise does not know may be missing for any reason."""
    assert explain_missing(ModuleNotFoundError(name="statewise_nowhere"), "train") is None
