"""Loads a bundle in a child process first: a crash, a hang or a flood of memory there is not the server's.

    python -m statewise_server.repository.trial BUNDLE VARIANT

The child checks the graphs, loads them and warms them up, within limits. Its exit code is 0, or 1 with the
reason as the last line of its error output; any other end is a native crash or a limit that was reached.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ConfigDict, Field

from statewise.bundles.certificate import check_certificate
from statewise.bundles.onnx_check import check_graphs
from statewise.bundles.reader import Bundle, open_bundle
from statewise.errors import BundleError, StatewiseError, UnavailableError
from statewise_server.engine.settings import EngineSettings

_POLL_SECONDS = 0.05
_MAX_REASON_BYTES = 4096
_MAX_FILE_BYTES = 64 * 2**20
_LEAST_ADDRESS_SPACE = 8 * 2**30


def _default_address_space() -> int:
    # Far more is reserved than used: the libraries, and a stack and an arena for every thread.
    return max(_LEAST_ADDRESS_SPACE, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


class TrialLimits(BaseModel):
    """Resource limits of a trial load. Frozen; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    address_space_bytes: int = Field(default_factory=_default_address_space, ge=2**30)
    """Address space of the child; not limited for CUDA, which reserves the whole of it."""

    cpu_seconds: int = Field(default=600, ge=1)
    """Processor time of the child, over all its threads."""

    seconds: float = Field(default=300.0, gt=0)
    """Time until the child is taken to hang."""


def try_bundle(
    bundle: Bundle,
    variant_name: str,
    settings: EngineSettings,
    limits: TrialLimits | None = None,
    cancelled: threading.Event | None = None,
) -> None:
    """Load and warm up a variant in a child process.

    Raises BundleError with the reason where that fails, UnavailableError where `cancelled` was set first.
    """
    limits = limits or TrialLimits()
    on_cpu = bundle.variant(variant_name).device == "cpu"
    command = [
        *(sys.executable, "-P", "-m", "statewise_server.repository.trial", str(bundle.folder), variant_name),
        *("--threads", str(settings.intra_op_threads)),
        *("--address-space", str(limits.address_space_bytes if on_cpu else 0)),
        *("--cpu-seconds", str(limits.cpu_seconds), "--seconds", str(limits.seconds)),
        *(() if settings.cuda_graphs else ("--no-cuda-graphs",)),
    ]
    fault = run_child(command, limits.seconds, cancelled or threading.Event())
    if fault:
        raise BundleError(f"variant {variant_name} cannot be loaded: {fault}")


def run_child(command: Sequence[str], seconds: float, cancelled: threading.Event) -> str | None:
    """Run a command to its end; return None where it succeeded, else what went wrong, in a few words.

    The child is killed when the time is up, and when `cancelled` is set, which raises UnavailableError.
    """
    # A file, not a pipe: a child that writes without end then fills neither our memory nor a pipe.
    with tempfile.TemporaryFile() as messages:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=messages,
            env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
            start_new_session=True,  # Ctrl-C is for the server, which then cancels the trial
        )
        try:
            timed_out = not _wait(child, seconds, cancelled)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        if timed_out:
            return f"its trial did not end within {seconds:g} s"
        return _fault(child.returncode, _last_line(messages))


def _wait(child: subprocess.Popen[bytes], seconds: float, cancelled: threading.Event) -> bool:
    end = time.monotonic() + seconds
    while child.poll() is None:
        if time.monotonic() > end:
            return False
        if cancelled.wait(_POLL_SECONDS):
            raise UnavailableError("the server is stopping")
    return True


def _fault(returncode: int, last_line: str) -> str | None:
    if returncode == 0:
        return None
    if returncode > 0:
        return last_line or f"its trial ended with exit code {returncode} and no message"
    number = -returncode
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    meaning = {"SIGXCPU": " (out of processor time)", "SIGKILL": " (out of memory?)"}.get(name, "")
    return f"its trial was ended by {name}{meaning}" + (f": {last_line}" if last_line else "")


def _last_line(messages: IO[bytes]) -> str:
    size = messages.seek(0, os.SEEK_END)
    messages.seek(max(0, size - _MAX_REASON_BYTES))
    lines = messages.read().decode("utf-8", "replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the child's side: 0 if the variant loads and warms up, else 1 and the reason on one line."""
    options = _parse(arguments)
    _limit_resources(options)
    try:
        _load(options)
    except StatewiseError as error:
        return _fail(str(error))
    except MemoryError:
        return _fail("it needs more memory than its trial may use")
    except Exception as error:
        return _fail(f"{type(error).__name__}: {error}")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m statewise_server.repository.trial", description="Load a bundle and warm it up."
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("variant")
    parser.add_argument("--threads", type=int, default=0, help="0 takes all cores")
    parser.add_argument("--address-space", type=int, default=0, help="bytes; 0 sets no limit")
    parser.add_argument("--cpu-seconds", type=int, default=600)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--no-cuda-graphs", dest="captures", action="store_false")
    return parser.parse_args(arguments)


def _limit_resources(options: argparse.Namespace) -> None:
    # The parent enforces the time; the alarm is for a child whose parent was killed.
    signal.alarm(int(options.seconds) + 10)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, _MAX_FILE_BYTES)
    _limit(resource.RLIMIT_CPU, options.cpu_seconds)
    if options.address_space:
        _limit(resource.RLIMIT_AS, options.address_space)
    with suppress(OSError):  # not Linux, or a container without /proc
        # If the machine runs out of memory, this is the process to end.
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _load(options: argparse.Namespace) -> None:
    # The parent has just checked the hashes.
    bundle = open_bundle(options.bundle, check_hashes=False)
    check_certificate(bundle, options.variant)
    check_graphs(bundle, options.variant)
    _load_tokenizer(bundle)
    # After the checks, as importing ONNX Runtime takes longer than they do.
    from statewise_server.runtime.one_shot import OneShotRunner
    from statewise_server.runtime.state.pool import capacity_for
    from statewise_server.runtime.steps.runner import Runner

    spec, threads = bundle.manifest.model, options.threads
    if spec.generates:
        capacity = capacity_for(1, spec.max_positions or 0)
        Runner.load(
            bundle,
            options.variant,
            max_rows=1,
            capacity=capacity,
            intra_op_threads=threads,
            captures=options.captures,
        ).warm_up()
    for graph in bundle.variant(options.variant).one_shot_graphs:
        OneShotRunner.load(bundle, options.variant, graph, intra_op_threads=threads).warm_up()


def _load_tokenizer(bundle: Bundle) -> None:
    name = bundle.manifest.tokenizer
    if name is None:
        return
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(str(bundle.path(name)))
    except Exception as error:  # the library raises Exception itself
        raise BundleError(f"{name}: cannot be loaded: {error}") from error


def _fail(reason: str) -> int:
    print(" ".join(reason.split()), file=sys.stderr)
    return 1


if __name__ == "__main__":
    # Past the interpreter's clean-up, which is not what is on trial.
    code = main()
    sys.stderr.flush()
    os._exit(code)
