"""The parity certificate: a variant, run by the server's runtime and engine, against the PyTorch reference.

A variant of lower precision is held against itself and against an emulation of its quantization, and its divergence
from PyTorch is measured and bounded.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from statewise.bundles.certificate import Certificate
from statewise_export.certify.check import Check, Outcome
from statewise_export.certify.inputs import DATA_SEED
from statewise_export.certify.quantized.casts import FLOAT16_WEIGHTS
from statewise_export.certify.quantized.products import QUANTIZATION
from statewise_export.certify.sequences.graphs import INSPECT, PREDICT, SCORE
from statewise_export.certify.served.manifest import MANIFEST
from statewise_export.certify.served.streams import SERVED
from statewise_export.certify.served.whole import WHOLE_SEQUENCES
from statewise_export.certify.steps.divergence import DIVERGENCE
from statewise_export.certify.steps.drawn_vectors import SAMPLED_VECTORS
from statewise_export.certify.steps.invariance import BATCH_INVARIANCE
from statewise_export.certify.steps.outputs import OUTPUTS
from statewise_export.certify.steps.tokens import GREEDY_TOKENS, PENALIZED, SAMPLED, SAMPLED_TOKENS
from statewise_export.certify.subject import subject_of
from statewise_export.certify.trial import Trial
from statewise_export.faults import graph_faults

CHECKS: tuple[Check, ...] = (
    MANIFEST,
    QUANTIZATION,
    FLOAT16_WEIGHTS,
    OUTPUTS,
    BATCH_INVARIANCE,
    GREEDY_TOKENS,
    SAMPLED_TOKENS,
    SAMPLED_VECTORS,
    DIVERGENCE,
    PREDICT,
    SCORE,
    INSPECT,
    SERVED,
    WHOLE_SEQUENCES,
)
"""In the order of a certificate's lines. A new check is a module with a Check, and a line here."""


def certify(trial: Trial) -> Certificate:
    """Run every check that applies; the certificate says whether all of them passed.

    Raises StatewiseError where the variant cannot be loaded or a run breaks off.
    """
    return _assemble(trial, run_checks(trial, CHECKS))


def run_checks(trial: Trial, checks: Iterable[Check]) -> list[Outcome]:
    """Run those checks that apply; raises as `certify`."""
    outcomes: list[Outcome] = []
    for check in checks:
        if check.applies_to(trial):
            trial.progress(check.name)
            with graph_faults(f"{trial.variant_name}: {check.name}"):
                outcomes += check.run(trial)
    return outcomes


def _assemble(trial: Trial, outcomes: list[Outcome]) -> Certificate:
    """Make the certificate of the outcomes' lines, cases and figures."""
    figures: dict[str, Any] = {}
    for outcome in outcomes:
        for name, value in outcome.figures.items():
            figures[name] = figures.get(name, ()) + value if isinstance(value, tuple) else value
    sequences = figures.get("sequences", ())
    if sequences and not trial.spec.generates:
        # The first graph stands for the model, which has no steps.
        names = ("tolerances", "outputs", "batch_invariant", "divergence")
        figures |= {name: getattr(sequences[0], name) for name in names}
    return Certificate(
        **subject_of(trial.bundle, trial.variant_name, trial.limits),
        **({"chunk_invariant": True} | figures),
        passed=all(outcome.passed for outcome in outcomes),
        checks=tuple(outcome.result for outcome in outcomes),
        cases=tuple(case for outcome in outcomes for case in outcome.cases),
        seeds=(DATA_SEED, *(params.seed or 0 for params in (*SAMPLED, *PENALIZED))),
    )
