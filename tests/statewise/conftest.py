"""One server for the tests of clients and commands."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from statewise_server.app import Application
from tests.serving import running_server


@pytest.fixture(scope="package")
def server() -> Iterator[Application]:
    """Run a server with the models of `tests.serving`."""
    with running_server() as application:
        yield application
