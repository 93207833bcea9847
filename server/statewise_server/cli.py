"""`statewise serve`, whose flags are the settings of `statewise_server.config`, with their documentation."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import ByteSize
from pydantic.fields import FieldInfo

from statewise_server.config import ServerSettings, load_settings
from statewise_server.engine.settings import EngineSettings

_SPELLINGS = {"intra_op_threads": "--threads"}


def serve(config: Path | None = None, ready_file: Path | None = None, **flags: Any) -> None:
    """Serve the models of a repository over gRPC.

    A setting is taken from its flag, else from the environment (STATEWISE_PORT, STATEWISE_ENGINE__MAX_ROWS),
    else from the YAML file. SIGTERM lets running streams complete.
    """
    # Here, so that `statewise --help` imports neither ONNX Runtime nor the services.
    from statewise_server.app import run

    given = {name: value for name, value in flags.items() if value is not None}
    engine = {name: given.pop(name) for name in EngineSettings.model_fields if name in given}
    run(load_settings(given | ({"engine": engine} if engine else {}), config), ready_file)


def _parameters() -> Iterator[inspect.Parameter]:
    config = Annotated[Path | None, typer.Option(help="YAML file with settings.", dir_okay=False)]
    ready = Annotated[Path | None, typer.Option(help="File to write host:port to, once the models are loaded.")]
    for name, field in ServerSettings.model_fields.items():
        if name != "engine":
            yield _parameter(name, field, "Server")
    yield inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=config)
    yield inspect.Parameter("ready_file", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=ready)
    for name, field in EngineSettings.model_fields.items():
        yield _parameter(name, field, "Engine, one per model")


def _parameter(name: str, field: FieldInfo, panel: str) -> inspect.Parameter:
    # The settings check choices and sizes, and say what is wrong in the same words whatever the source. What is on by
    # default must be told to be off (`--mixed-steps off`).
    is_word = (
        field.annotation is bool or get_origin(field.annotation) is Literal or ByteSize in get_args(field.annotation)
    )
    kind = str if is_word else field.annotation
    value = None if field.is_required() else field.get_default(call_default_factory=True)
    default = "" if value is None else f" [default: {value}]"
    option = typer.Option(
        _SPELLINGS.get(name, f"--{name.replace('_', '-')}"),
        help=(field.description or "").replace("\n", " ") + default.replace("[", r"\["),
        rich_help_panel=panel,
        show_default=False,
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],  # type: ignore[operator] # a class
    )


_signature = inspect.Signature(list(_parameters()))
serve.__signature__ = _signature  # type: ignore[attr-defined] # Typer reads it
serve.__annotations__ = {name: parameter.annotation for name, parameter in _signature.parameters.items()}
