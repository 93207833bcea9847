"""The version of Statewise, and which versions of which libraries made something."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

__version__ = version("statewise")


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """The version of each package that is installed; the others are left out."""
    versions = {}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
