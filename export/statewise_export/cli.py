"""`statewise export` and `statewise verify`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from statewise.errors import ConfigError, ParityError
from statewise_export.passes.variants import DEFAULT_VARIANT, VARIANTS, plans
from statewise_export.report import ReportFormat, render, table

if TYPE_CHECKING:
    from collections.abc import Callable

    from statewise.bundles.certificate import Certificate

VariantOption = Annotated[
    list[str],
    typer.Option(
        "--variant",
        help="What to make; give it again for several in one bundle. "
        + "; ".join(f"{name}: {plan.purpose}" for name, plan in VARIANTS.items())
        + ".",
    ),
]
InspectOption = Annotated[
    bool,
    typer.Option(
        "--inspect",
        help="Add a graph of attention weights, or of gates, for `statewise plot`; to variants in float32.",
    ),
]
MaxKLOption = Annotated[
    float | None,
    typer.Option(
        "--max-kl",
        min=0.0,
        max=100.0,
        help="Variants of lower precision: largest mean KL divergence from float32, in nats per token "
        "(in place of the precision's own limit); perplexity may grow by as much.",
    ),
]
DIVERGENCE_NAME = "divergence from float32"
"""The end of the names of checks that limits bound."""
ReportOption = Annotated[
    ReportFormat | None, typer.Option("--report", help="Also write a report, for CI: junit, json or markdown.")
]
ReportFileOption = Annotated[
    Path | None, typer.Option("--report-file", help="Where the report goes; standard output where absent.")
]


def export(
    checkpoint: Annotated[Path, typer.Argument(help="Output folder of `statewise train`.")],
    to: Annotated[Path, typer.Option("--to", help="Model repository to export into; made if need be.")],
    name: Annotated[str | None, typer.Option(help="Name of the model; the checkpoint's own where absent.")] = None,
    version: Annotated[
        int | None, typer.Option(min=1, help="Version to make; the next free one where absent. Never overwritten.")
    ] = None,
    variant: VariantOption = [DEFAULT_VARIANT],  # noqa: B006 # typer copies it
    inspect: InspectOption = False,
    max_kl: MaxKLOption = None,
    report: ReportOption = None,
    report_file: ReportFileOption = None,
) -> None:
    """Export a checkpoint to ONNX, certify it against PyTorch and add it to a model repository.

    The bundle is run by the server's own runtime and engine, and must give PyTorch's outputs, tokens and
    log-probabilities; where it does not, no bundle is made and the exit code is 1. A variant in int8 or int4 must
    round exactly as stated, and its divergence from float32 is measured on held-out text and bounded.
    """
    _check_report(report, report_file)
    plans(variant)
    from statewise_export.pipeline import export_checkpoint
    from statewise_training.checkpoints.checkpoint import load_checkpoint

    console = Console(stderr=True)
    with _progress(console, "Export") as progress:
        progress("loading the checkpoint")
        loaded = load_checkpoint(checkpoint)
        exported = export_checkpoint(
            loaded,
            to,
            name=name,
            version=version,
            variants=variant,
            inspect=inspect,
            max_kl=max_kl,
            progress=progress,
        )
    _show(console, exported.certificates, report, report_file)
    if exported.folder is None:
        raise ParityError(f"{'; '.join(_misses(exported.certificates))}; no bundle was made")
    # Not wrapped, so that a path can be copied.
    console.print(f"Bundle: {exported.folder}", soft_wrap=True, highlight=False, markup=False)
    console.print(f"Serve it: statewise serve --models {to}", soft_wrap=True, highlight=False, markup=False)


def verify(
    bundle: Annotated[Path, typer.Argument(help="A bundle, or a model's folder (its newest version is taken).")],
    report: ReportOption = None,
    report_file: ReportFileOption = None,
) -> None:
    """Make a bundle's certificate again, on this machine, and compare.

    Exit code 0: it holds; 1: parity is missed here; 2: the bundle is damaged, or not one.
    """
    from statewise_export.pipeline import verify_bundle

    _check_report(report, report_file)
    console = Console(stderr=True)
    with _progress(console, "Verify") as progress:
        progress("checking files")
        verified = verify_bundle(bundle, progress=progress)
    _show(console, [v.remade for v in verified.values()], report, report_file)
    for variant, result in verified.items():
        before, now = result.stored.outputs.max_absolute_error, result.remade.outputs.max_absolute_error
        console.print(f"{variant}: largest error at export {before:.2e}, here {now:.2e}", highlight=False)
    misses = list(_misses(result.remade for result in verified.values()))
    if misses:
        raise ParityError(f"on this machine {'; '.join(misses)}")


def _misses(certificates: Iterable[Certificate]) -> Iterator[str]:
    """Describe each variant that failed: the checks that it missed or, where only limits are exceeded, the ways out."""
    for certificate in certificates:
        names = [check.name for check in certificate.checks if not check.passed]
        if names and all(name.endswith(DIVERGENCE_NAME) for name in names):
            yield (
                f"{certificate.variant}: lies further from float32 than its limits; leave the variant out, "
                "or allow a larger KL divergence with --max-kl"
            )
        elif names:
            yield f"{certificate.variant}: the exported model does not do what PyTorch does; missed: {', '.join(names)}"


@contextmanager
def _progress(console: Console, title: str) -> Iterator[Callable[[str], None]]:
    """A spinner that names the stage; plain lines where the output is no terminal."""
    if not console.is_terminal:
        yield lambda stage: console.print(f"{title}: {stage}")
        return
    with console.status(f"{title} ...") as status:
        yield lambda stage: status.update(f"{title}: {stage} ...")


def _check_report(report: ReportFormat | None, report_file: Path | None) -> None:
    """Refuse what would be found out only after the work."""
    if report_file is None:
        return
    if report is None:
        raise ConfigError(f"--report-file {report_file}: say in which format, with --report junit, json or markdown")
    if not report_file.parent.is_dir() or report_file.is_dir():
        raise ConfigError(f"--report-file {report_file}: not a file in a folder that exists")


def _show(
    console: Console, certificates: Sequence[Certificate], report: ReportFormat | None, report_file: Path | None
) -> None:
    for certificate in certificates:
        console.print(table(certificate))
    if report is None:
        return
    text = render(certificates, report)
    if report_file is None:
        typer.echo(text, nl=False)
        return
    try:
        report_file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--report-file {report_file}: cannot be written: {error.strerror}") from error
