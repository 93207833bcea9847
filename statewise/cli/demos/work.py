"""Working folder of a demo, and the commands train, export and serve, which reuse existing results."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from rich.console import Console

from statewise.bundles.certificate import Certificate, check_certificate
from statewise.bundles.reader import Bundle, find_bundle, hash_file, open_bundle
from statewise.cli.demos.processes import Serving, run_step, run_steps, serving
from statewise.errors import BundleError, NotFoundError

_WEIGHTS = "model.safetensors"


@dataclass
class Work:
    """One run of a demo: its folder, its size and its console."""

    folder: Path
    """The demo's own; everything that it makes lies there."""
    fast: bool = False
    """Whether tiny models and a few steps are wanted: to see that everything works."""
    port: int = 0
    console: Console = field(default_factory=lambda: Console(highlight=False, soft_wrap=True))
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables of the commands beside the demo's own."""
    reused: list[str] = field(default_factory=list)
    """Steps whose results existed already."""

    @property
    def models(self) -> Path:
        """The model repository."""
        return self.folder / "models"

    def run_folder(self, name: str) -> Path:
        """Folder of the training run of a model."""
        return self.folder / "runs" / name

    def heading(self, title: str) -> None:
        """Begin a part of the demo."""
        self.console.rule(f"[bold]{title}[/]", align="left")

    def command(self, *arguments: str, quiet: bool = False) -> None:
        """Run `statewise ARGUMENTS` at this terminal. Exits with the code of a command that fails."""
        run_step(arguments, self.console, quiet=quiet, environment=self.environment)

    def python(self, module: str, *arguments: str) -> None:
        """Run `python -m MODULE ARGUMENTS` at this terminal. Exits with the code of a program that fails."""
        run_step(arguments, self.console, module=module, environment=self.environment)

    def train(self, *configurations: Mapping[str, Any]) -> None:
        """Train what is not there yet, each configuration under its `name`; several are trained two at a time.

        Each configuration is what `statewise train` reads, as a mapping; it is left as NAME.yaml in the folder.
        """
        wanted = []
        for configuration in configurations:
            name = configuration["name"]
            if (self.run_folder(name) / "summary.json").exists():
                self._reuse(
                    f"model {name}", f"the model in {self.run_folder(name)}; remove {self.folder} to train again"
                )
                continue
            file = self.folder / f"{name}.yaml"
            file.write_text(yaml.safe_dump(self._accepted(configuration), sort_keys=False))
            wanted.append((name, ["train", os.path.relpath(file), "--output", str(self.run_folder(name))]))
        self._run(wanted)

    def _accepted(self, configuration: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration; a run of a few steps need not have learnt anything."""
        if not self.fast:
            return dict(configuration)
        return {**configuration, "trainer": {**configuration.get("trainer", {}), "allow_diverged": True}}

    def export(self, *names: str) -> list[Bundle]:
        """Export and certify what is not there yet; the bundle of each model."""
        wanted = []
        for name in names:
            if (bundle := self._usable_bundle(name)) is not None:
                self._reuse(f"bundle {name}", f"the certified bundle in {os.path.relpath(bundle.folder)}")
                continue
            wanted.append((name, ["export", str(self.run_folder(name)), "--to", str(self.models)]))
        self._run(wanted)
        return [open_bundle(find_bundle(self.models, name)) for name in names]

    def serve(self, *, max_rows: int = 32) -> AbstractContextManager[Serving]:
        """Serve the folder's models from a child process, which ends with the `with` block."""
        return serving(self.models, self.port, self.folder, max_rows, self.environment)

    def write_summary(self, summary: BaseModel) -> None:
        """Leave the demo's figures as summary.json."""
        (self.folder / "summary.json").write_text(summary.model_dump_json(indent=2) + "\n")

    def _run(self, wanted: list[tuple[str, list[str]]]) -> None:
        if len(wanted) == 1:
            self.command(*wanted[0][1])
        elif wanted:
            run_steps(dict(wanted), self.folder / "logs", self.console, environment=self.environment)

    def _reuse(self, what: str, explanation: str) -> None:
        self.reused.append(what)
        self.console.print(f"reused: {explanation}")

    def _usable_bundle(self, name: str) -> Bundle | None:
        """The newest bundle of a model, where it is whole, certified, and of the weights that were trained."""
        if not self.models.is_dir():
            return None
        try:
            bundle = open_bundle(find_bundle(self.models, name))
            certificate_of(bundle)
        except NotFoundError:
            return None
        except BundleError as error:
            self.console.print(f"the bundle there cannot be used, so another version is made: {error}")
            return None
        is_current = bundle.manifest.files.get(_WEIGHTS) == hash_file(self.run_folder(name) / _WEIGHTS)
        return bundle if is_current else None


def certificate_of(bundle: Bundle) -> Certificate:
    """The certificate of a bundle's first variant. Raises BundleError where it does not stand."""
    return check_certificate(bundle, next(iter(bundle.manifest.variants)))
