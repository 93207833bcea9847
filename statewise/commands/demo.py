"""`statewise demo`: the whole path once, through the same commands that a user gives."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from statewise.bundle import Bundle, find_bundle, hash_file, open_bundle
from statewise.certificate import Certificate, check_certificate
from statewise.commands.demo_processes import Serving, run_step, serving, stopped_by_signals
from statewise.commands.demo_speed import measure
from statewise.commands.demo_summary import DemoSummary, TrainingFigures, draw, report
from statewise.errors import BundleError, ConfigError, NotFoundError

CONFIG = Path(__file__).with_name("demo.yaml")
PROMPT = 'The "with" statement is used to '
STREAMS = (1, 32)

_FAST = ("trainer.max_steps=4", "trainer.batch_size=8", "model.hidden_size=32", "data.held_out=0.02")


@dataclass(frozen=True)
class Plan:
    """What is made, and where."""

    folder: Path
    fast: bool

    @property
    def name(self) -> str:
        """Name of the model; a fast run has its own, so that it never takes the place of the real one."""
        return "python-docs-fast" if self.fast else "python-docs"

    @property
    def run(self) -> Path:
        """Folder of the training run."""
        return self.folder / "runs" / self.name

    @property
    def models(self) -> Path:
        """The model repository."""
        return self.folder / "models"


def demo(
    folder: Annotated[Path, typer.Option(help="Where everything goes; what is there already is reused.")] = Path(
        "demo"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the server; 0 takes a free one.")] = 0,
    fast: Annotated[
        bool, typer.Option("--fast", help="Train a tiny model for a few steps: to see that everything works.")
    ] = False,
) -> None:
    """Train a small GRU, export and certify it, serve it, and stream from it: about two minutes.

    It trains on Python's own documentation, so nothing is downloaded. Run again, it reuses what is there.
    """
    console = Console(highlight=False, soft_wrap=True)
    plan = Plan(folder, fast)
    with stopped_by_signals(), _only_one(folder):
        trained_now = _train(plan, console)
        bundle, exported_now = _export(plan, console)
        console.rule("[bold]3/5  serve[/]", align="left")
        with serving(plan.models, port, folder, max(STREAMS)) as server:
            console.print(f"listening at {server.address} (process {server.pid}, log {server.log})")
            _generate(plan, server, console)
            speeds = _measure(plan, server, console)
        training = TrainingFigures.model_validate_json((plan.run / "summary.json").read_bytes())
        summary = DemoSummary.of(
            training,
            _certificate(bundle),
            bundle=bundle.folder,
            tokens_per_second=speeds,
            reused=[name for name, now in (("model", trained_now), ("bundle", exported_now)) if not now],
            pictures=[plan.run / "loss.png", folder / "demo.png"],
        )
        draw(summary, folder / "demo.png")
        (folder / "summary.json").write_text(summary.model_dump_json(indent=2) + "\n")
        report(summary, plan.run, plan.models, console)


def _train(plan: Plan, console: Console) -> bool:
    """Train the model unless that is done; True where it was trained now."""
    console.rule("[bold]1/5  train[/]", align="left")
    if (plan.run / "summary.json").exists():
        console.print(f"the model in {plan.run} is reused; remove {plan.folder} to train again")
        return False
    changes = [f"name={plan.name}", *(_FAST if plan.fast else ())]
    sets = [word for change in changes for word in ("--set", change)]
    run_step(["train", os.path.relpath(CONFIG), *sets, "--output", str(plan.run)], console)
    return True


def _export(plan: Plan, console: Console) -> tuple[Bundle, bool]:
    """Export and certify the model unless that is done; the bundle, and whether it was made now."""
    console.rule("[bold]2/5  export and certify[/]", align="left")
    bundle = _usable_bundle(plan, console)
    if bundle is not None:
        console.print(f"the certified bundle in {os.path.relpath(bundle.folder)} is reused")
        return bundle, False
    run_step(["export", str(plan.run), "--to", str(plan.models)], console)
    return open_bundle(find_bundle(plan.models, plan.name)), True


def _usable_bundle(plan: Plan, console: Console) -> Bundle | None:
    """The newest bundle, where it is whole, certified, and of the model that was trained."""
    if not plan.models.is_dir():
        return None
    try:
        bundle = open_bundle(find_bundle(plan.models, plan.name))
        _certificate(bundle)
    except NotFoundError:
        return None
    except BundleError as error:
        console.print(f"the bundle there cannot be used, so another version is made: {error}")
        return None
    weights = "model.safetensors"
    return bundle if bundle.manifest.files.get(weights) == hash_file(plan.run / weights) else None


def _certificate(bundle: Bundle) -> Certificate:
    return check_certificate(bundle, next(iter(bundle.manifest.variants)))


def _generate(plan: Plan, server: Serving, console: Console) -> None:
    """Stream two continuations to the terminal, each from a client process of its own."""
    console.rule("[bold]4/5  generate[/]", align="left")
    for title, temperature, length in (("greedy", "0", "160"), ("temperature 0.8, seed 1", "0.8", "400")):
        console.print(f"[bold]{title}:[/]\n[cyan]{escape(PROMPT)}[/]", end="")
        command = ["generate", plan.name, PROMPT, "--address", server.address, "--max-tokens", length]
        run_step([*command, "--temperature", temperature, "--seed", "1"], console, quiet=True)


def _measure(plan: Plan, server: Serving, console: Console) -> dict[int, float]:
    console.rule("[bold]5/5  measure[/]", align="left")
    length, rounds = (64, 1) if plan.fast else (512, 3)
    speeds: dict[int, float] = {}
    for streams in STREAMS:
        started = time.monotonic()
        speeds[streams] = asyncio.run(
            measure(server.address, plan.name, PROMPT, streams=streams, length=length, rounds=rounds)
        )
        seconds = time.monotonic() - started
        console.print(f"{streams:>3} at once: {speeds[streams]:>9,.0f} tokens/s through gRPC ({seconds:.1f} s)")
    return speeds


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Keep the folder to this process. Raises ConfigError where another demo is at work there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ConfigError(f"--folder {folder}: cannot be used as a folder: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ConfigError(
            f"--folder {folder}: another demo is running there; wait for it, or choose another --folder"
        ) from error
    finally:
        os.close(descriptor)
