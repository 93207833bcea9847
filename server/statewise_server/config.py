"""The server's settings: flags before `STATEWISE_` variables before the YAML file before the defaults."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from statewise.errors import ConfigError
from statewise_server.engine.settings import EngineSettings, describe_faults
from statewise_server.runtime.ort.cores import num_cores

logger = logging.getLogger(__name__)

ENV_PREFIX = "STATEWISE_"

MESSAGES_PER_SECOND_AND_CORE = 100.0
"""A message takes the two ends about 200 us beside a model that keeps every core busy: a fiftieth of these."""

_OTHER_VARIABLES = {"STATEWISE_ADDRESS", "STATEWISE_TRACEBACK"}


class ServerSettings(BaseSettings):
    """Everything that an operator can set. Unknown keys are refused.

    In the environment a setting is its name in capitals after `STATEWISE_`; one of the engine's has two
    underscores: `STATEWISE_ENGINE__MAX_ROWS=32`.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    yaml_file: ClassVar[Path | None] = None

    models: Path
    """The model repository: a folder with `<model>/<version>/manifest.json` in it."""

    host: str = Field(default="127.0.0.1", min_length=1)
    """Address to listen at; 0.0.0.0 listens at all, also to strangers."""

    port: int = Field(default=50051, ge=0, le=65535)
    """Port to listen at; 0 takes a free one, which the ready line names."""

    variant: str | None = None
    """Variant to serve (as `cpu-float32`); by default the best one that this machine runs."""

    engine: EngineSettings = EngineSettings()
    """Sizes and limits of each model's engine."""

    max_streams: int = Field(default=1024, ge=1)
    """Generate calls at once over all models, the waiting ones included."""

    max_paths: int = Field(default=1000, ge=1)
    """Paths of one forecast."""

    max_forecast_numbers: int = Field(default=1_000_000, ge=1)
    """Numbers of all paths of one forecast: paths x horizon x features."""

    max_message_bytes: int = Field(default=4 * 1024 * 1024, ge=1024)
    """Largest request; a larger one is refused with RESOURCE_EXHAUSTED."""

    max_buffered_items: int = Field(default=65536, ge=1)
    """Ids, vector components and log-probabilities that may wait for a slow reader before it is cut off."""

    stream_interval_ms: float = Field(default=50.0, ge=0, le=1000)
    """Least milliseconds between two messages of a stream after its first; 0 sends one for every step."""

    max_messages_per_second: float = Field(default_factory=lambda: MESSAGES_PER_SECOND_AND_CORE * num_cores(), gt=0)
    """Messages over all streams, 100 for each core by default; of many streams each gets fewer, with more in each."""

    grace_seconds: float = Field(default=20.0, ge=0)
    """Time that running streams have to complete after SIGTERM."""

    metrics_port: int = Field(default=0, ge=0, le=65535)
    """Port of the Prometheus metrics, at the same host; 0 serves none."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severity that is logged."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources, the strongest first."""
        file = YamlConfigSettingsSource(settings_cls, yaml_file=cls.yaml_file)
        return init_settings, env_settings, file


def load_settings(flags: Mapping[str, Any], config: Path | None = None) -> ServerSettings:
    """Read the settings from flags, environment and file.

    Raises ConfigError that names every setting at fault.
    """
    if config is not None and not config.is_file():
        raise ConfigError(f"--config {config}: there is no such file")
    _warn_of_unknown_variables()
    # pydantic-settings takes the file from the class; a subclass keeps two loads from meeting.
    settings_class = type("ServerSettings", (ServerSettings,), {"yaml_file": config})
    try:
        settings: ServerSettings = settings_class(**flags)
    except ValidationError as error:
        raise ConfigError(_readable(error, config)) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {config}: this is no YAML: {error}") from error
    except (ValueError, TypeError) as error:
        # pydantic-settings' own errors, as for a variable that holds no JSON where a group is wanted.
        raise ConfigError(f"the settings cannot be read: {error}") from error
    return settings


def _readable(error: ValidationError, config: Path | None) -> str:
    source = f" (flags, {ENV_PREFIX} variables or {config})" if config else ""
    lines = [f"these settings cannot be used{source}:"]
    known = {*ServerSettings.model_fields, *EngineSettings.model_fields}
    return "\n".join([*lines, *(f"  {line}" for line in describe_faults(error, known))])


def _warn_of_unknown_variables() -> None:
    """Name the variables that set nothing; refusing them would refuse what Kubernetes adds for a service."""
    known = {f"{ENV_PREFIX}{name.upper()}" for name in ServerSettings.model_fields}
    for name in os.environ:
        is_ours = name.startswith(ENV_PREFIX) and name not in _OTHER_VARIABLES
        if is_ours and name.split("__")[0] not in known:
            logger.warning("the environment variable %s sets nothing", name)
