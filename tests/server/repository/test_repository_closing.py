"""Closing a repository."""

import threading
import time
from pathlib import Path

import pytest

from statewise.errors import UnavailableError
from statewise_server.repository.repository import Repository
from tests.server.repository.test_repository import SETTINGS, generate


def test_closing_lets_what_runs_complete(models: Path) -> None:
    """Within the grace a running stream gets all its items; new requests are refused at once."""
    repository = Repository(models, SETTINGS, trial=False)
    repository.load_all()
    engine = repository.get("a")
    inbox = generate(engine, 100)

    repository.close(10.0)

    whole = inbox.collect()
    assert (len(whole.items), whole.finish_reason) == (100, "length")
    with pytest.raises(UnavailableError):
        generate(engine, 1)
    with pytest.raises(UnavailableError, match="stopping"):
        repository.get("a")


def test_closing_ends_a_load_under_way(models: Path) -> None:
    """A server that is told to stop while it loads ends its trials and its loading threads at once."""
    repository = Repository(models, SETTINGS)
    loader = threading.Thread(target=repository.load_all)
    threads = threading.active_count()
    loader.start()
    time.sleep(0.15)  # in the middle of the trials, which take longer
    started = time.monotonic()

    repository.close(5.0)
    loader.join(5)

    assert time.monotonic() - started < 2
    assert threading.active_count() == threads
    assert all(entry.engine is None for entry in repository.entries())
    with pytest.raises(UnavailableError, match="stopping"):
        repository.get("a")


def test_closing_twice_or_before_loading_does_nothing(models: Path) -> None:
    """Close may be called at any time, and loading afterwards loads nothing."""
    repository = Repository(models, SETTINGS, trial=False)
    repository.close(0.0)
    repository.close(0.0)
    repository.load_all()

    assert all(entry.engine is None for entry in repository.entries())
