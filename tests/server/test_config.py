"""Where the server's settings come from, and how mistakes in them are told."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from statewise.errors import ConfigError
from statewise_server.config import ServerSettings, load_settings
from statewise_server.engine.settings import EngineSettings


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Write a file that sets a port, a host and two engine settings."""
    file = tmp_path / "serve.yaml"
    file.write_text("models: /models\nport: 1\nhost: file\nengine: {max_rows: 1, max_waiting: 1}\n")
    return file


def test_flags_win_over_environment_over_file_over_defaults(config: Path, monkeypatch: Any) -> None:
    """Each setting, also each of the engine's, is taken from the strongest source that names it."""
    monkeypatch.setenv("STATEWISE_HOST", "environment")
    monkeypatch.setenv("STATEWISE_PORT", "2")
    monkeypatch.setenv("STATEWISE_ENGINE__MAX_ROWS", "2")
    monkeypatch.setenv("STATEWISE_ENGINE__TOKEN_BUDGET", "2")

    settings = load_settings({"port": 3, "engine": {"token_budget": 3}}, config)

    assert (settings.port, settings.host, settings.models) == (3, "environment", Path("/models"))
    assert settings.engine == EngineSettings(token_budget=3, max_rows=2, max_waiting=1)
    assert settings.grace_seconds == 20.0


def test_defaults_listen_to_this_machine_only() -> None:
    """Without being told, the server is not open to the network."""
    assert load_settings({"models": Path()}).host == "127.0.0.1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: /m\nprot: 1\n", "prot: Extra inputs are not permitted, got 1; did you mean port?"),
        ("models: /m\nengine: {rows: 1}\n", "engine.rows: Extra inputs are not permitted"),
        ("models: /m\nport: many\n", "port: Input should be a valid integer.*got 'many'"),
        ("models: /m\nengine: {max_rows: 0}\n", "engine.max_rows: .*greater than or equal to 1, got 0"),
        ("port: 1\n", "models: Field required"),
        ("models: [\n", "this is no YAML"),
        ("- 1\n", "cannot be read|no YAML|cannot be used"),
        ("\xff\x00", "no YAML|cannot be read"),
    ],
)
def test_mistake_in_the_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    """A key, value or file that cannot be used is a ConfigError that names it."""
    file = tmp_path / "serve.yaml"
    file.write_bytes(text.encode("latin-1"))

    with pytest.raises(ConfigError, match=message):
        load_settings({}, file)


def test_every_mistake_is_named_at_once() -> None:
    """Two mistakes do not need two runs."""
    with pytest.raises(ConfigError, match=r"port: .*\n.*log_level: "):
        load_settings({"models": Path(), "port": -1, "log_level": "loud"})


@pytest.mark.parametrize(
    ("text", "count"), [("512MB", 512 * 10**6), ("2GiB", 2 * 2**30), ("1.5G", 15 * 10**8), ("4096", 4096)]
)
def test_sizes_may_have_units(text: str, count: int, monkeypatch: Any) -> None:
    """Bytes are given as people write them, as a flag and in the environment."""
    assert load_settings({"models": Path(), "engine": {"state_memory": text}}).engine.state_memory == count
    monkeypatch.setenv("STATEWISE_ENGINE__STATE_MEMORY", text)
    assert load_settings({"models": Path()}).engine.state_memory == count


def test_missing_file_is_told() -> None:
    """A --config that does not exist is not taken for an empty one."""
    with pytest.raises(ConfigError, match="there is no such file"):
        load_settings({}, Path("/nowhere/serve.yaml"))


def test_group_that_is_no_group_in_the_environment(monkeypatch: Any) -> None:
    """A variable that holds no JSON where a group is wanted is told, too."""
    monkeypatch.setenv("STATEWISE_ENGINE", "fast")

    with pytest.raises(ConfigError, match="engine"):
        load_settings({"models": Path()})


def test_unknown_variable_is_warned_of(monkeypatch: Any, caplog: Any) -> None:
    """A misspelt variable is not passed over in silence."""
    monkeypatch.setenv("STATEWISE_PROT", "1")

    with caplog.at_level(logging.WARNING):
        load_settings({"models": Path()})

    assert "STATEWISE_PROT sets nothing" in caplog.text


@pytest.mark.parametrize("settings", [ServerSettings, EngineSettings])
def test_every_setting_is_documented(settings: Any) -> None:
    """`statewise serve --help` has a sentence for each flag."""
    undocumented = [name for name, field in settings.model_fields.items() if not field.description]

    assert undocumented == []
