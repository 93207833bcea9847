"""Reading a configuration: YAML, overrides, and errors that name the key, the value and the remedy."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from statewise.errors import ConfigError
from statewise_training.config import TrainConfig
from statewise_training.config_keys import keys_of, suggest


def load_config(path: Path, overrides: Sequence[str] = (), output: Path | None = None) -> TrainConfig:
    """Read the configuration in a YAML file, with `a.b=value` overrides applied in their order.

    Raises ConfigError naming the key, the value and the remedy.
    """
    raw = _read_yaml(path)
    for override in overrides:
        _apply_override(raw, override)
    if output is not None:
        raw["output"] = str(output)
    return validate(TrainConfig, raw, source=str(path), overrides=overrides)


def validate(
    model: type[BaseModel], raw: dict[str, Any], *, source: str, prefix: str = "", overrides: Sequence[str] = ()
) -> Any:
    """Return `raw`, the section at `prefix`, as a record of that class; `overrides` are the ones that changed it.

    Raises ConfigError with every fault, each on a line of its own.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        described = [_describe(fault, model, raw, prefix) for fault in faults]
        if len(faults) == 1:
            message = f"{source}: {described[0]} {_remedy(faults[0], raw, source, prefix, overrides)}"
        else:
            lines = "\n  ".join(described)
            message = f"{source}: {len(faults)} faults\n  {lines} (correct them in {source}, or in --set)"
        raise ConfigError(message) from error


def _remedy(fault: ErrorDetails, raw: dict[str, Any], source: str, prefix: str, overrides: Sequence[str]) -> str:
    key = _dotted(fault, raw, prefix)
    given = [override.partition("=")[0].strip() for override in overrides]
    for name in reversed(given):
        if key == name or key.startswith(f"{name}."):
            return f"(correct --set {name})"
    if fault["type"] == "extra_forbidden" or not key:
        return f"(correct it in {source})"
    return f"(correct it in {source}, or pass --set {key}=VALUE)"


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses duplicate keys; PyYAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} comes twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.load(path.read_bytes(), Loader=_Loader)  # noqa: S506 # a subclass of SafeLoader
    except OSError as error:
        raise ConfigError(
            f"configuration {path} cannot be read: {error.strerror}; give the path of a YAML file"
        ) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}: invalid YAML{place}: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: invalid YAML: {error}") from error
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise ConfigError(f"{path}: must hold `key: value` pairs, as in examples/configs; found {_kind(raw)}")
    return raw


def _kind(raw: object) -> str:
    return "nothing" if raw is None else f"a {type(raw).__name__}"


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    *parents, last = key.strip().split(".")
    if not equals or not last or not all(parents):
        raise ConfigError(f"--set {override}: write it as section.key=value, such as trainer.max_epochs=5")
    section = raw
    for depth, parent in enumerate(parents):
        # Create a section that is absent or null; a plain value cannot have keys.
        if section.get(parent) is None:
            section[parent] = {}
        section = section[parent]
        if not isinstance(section, dict):
            raise ConfigError(
                f"--set {override}: {'.'.join(parents[: depth + 1])} is {section!r}, without keys below it"
            )
    try:
        section[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: {text!r} is not valid YAML; quote it, as in '{key}=\"…\"'") from error


def _describe(fault: ErrorDetails, model: type[BaseModel], raw: dict[str, Any], prefix: str) -> str:
    field = _dotted(fault, raw, prefix)
    lead = f"{field}: " if field else ""
    value, context = fault["input"], fault.get("ctx", {})
    match fault["type"]:
        case "missing":
            return f"{lead}required, but absent"
        case "union_tag_not_found":
            return f"{field}.kind: required, but absent"
        case "union_tag_invalid":
            return f"{field}.kind: must be one of {context['expected_tags']}, got {context['tag']!r}"
        case "extra_forbidden":
            return f"{lead}unknown key (its value is {_short(value)}){_suggestion(field, model, raw, prefix)}"
        case "value_error":
            return f"{lead}{context['error']}"
    message = fault["msg"].replace("Input should", "should", 1)
    return f"{lead}{message}, got {_short(value)}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _dotted(fault: ErrorDetails, raw: dict[str, Any], prefix: str) -> str:
    location = list(fault["loc"])
    section = raw.get(str(location[0])) if location else None
    # pydantic adds the chosen member of a union to the location; the file has no such level.
    if len(location) > 1 and isinstance(section, dict) and section.get("kind", object()) == location[1]:
        del location[1]
    return ".".join(str(part) for part in ([prefix] if prefix else []) + location)


def _suggestion(path: str, model: type[BaseModel], raw: dict[str, Any], prefix: str) -> str:
    if not prefix:
        return suggest(path, list(keys_of(model)), raw)
    return suggest(path, [*keys_of(model, prefix), *keys_of(TrainConfig)], {prefix: raw})
