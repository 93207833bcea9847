"""A certificate for people (table, Markdown) and for CI (JUnit XML, JSON)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from xml.etree import ElementTree as ET

from rich.table import Table

from statewise.bundles.certificate import (
    AnswerDivergence,
    Case,
    Certificate,
    DensityDivergence,
    Divergence,
    LabelDivergence,
    Limits,
    OutputAgreement,
    SequenceAgreement,
    TokenAgreement,
    Tolerances,
    ValueDivergence,
)

_BATCH = {"exact": "bit for bit", "within": "within limit"}


class ReportFormat(StrEnum):
    """What `--report` writes."""

    JUNIT = "junit"
    JSON = "json"
    MARKDOWN = "markdown"


@dataclass(frozen=True)
class Check:
    """One line of a report."""

    name: str
    passed: bool
    figure: str


def checks(certificate: Certificate) -> list[Check]:
    """What the certificate compared, one line each."""
    has_steps = any(case.graph == "step" for case in certificate.cases)
    lines = _step_checks(certificate) if has_steps else []
    for agreement in certificate.sequences:
        lines += _sequence_checks(certificate, agreement)
    return [*lines, *_divergences(certificate)]


def _step_checks(certificate: Certificate) -> list[Check]:
    """Of the graphs that carry state."""
    against = "PyTorch" if certificate.reference == "pytorch" else "single steps"
    lines = [_outputs(f"outputs against {against}", "step", certificate, certificate.outputs, certificate.tolerances)]
    lines += [
        _tokens(name, tokens)
        for name, tokens in (
            ("greedy tokens", certificate.greedy_tokens),
            ("sampled tokens", certificate.sampled_tokens),
            ("sampled vectors", certificate.sampled_vectors),
        )
        if tokens is not None
    ]
    lines.append(
        Check(
            "row alone = row in a batch",
            certificate.batch_invariant,
            _BATCH[certificate.tolerances.batch] if certificate.batch_invariant else "differs",
        )
    )
    lines.append(
        Check(
            "prompt in chunks = whole",
            certificate.chunk_invariant,
            "within limit" if certificate.chunk_invariant else "differs",
        )
    )
    return lines


def _sequence_checks(certificate: Certificate, agreement: SequenceAgreement) -> list[Check]:
    """Of one graph that reads whole sequences."""
    graph, is_exact = agreement.graph, certificate.reference == "pytorch"
    against = "PyTorch" if is_exact else {"score": "single steps", "predict": "the sequence alone"}[graph]
    name, is_invariant = f"{graph}: against {against}", agreement.batch_invariant
    lines = [_outputs(name, graph, certificate, agreement.outputs, agreement.tolerances)]
    if agreement.labels is not None:
        lines.append(_tokens(f"{graph}: labels", agreement.labels))
    figure = _BATCH[agreement.tolerances.batch] if is_invariant else "differs"
    return [*lines, Check(f"{graph}: alone = in a batch", is_invariant, figure)]


def _outputs(
    name: str, graph: str, certificate: Certificate, outputs: OutputAgreement, tolerances: Tolerances
) -> Check:
    passed = all(case.passed for case in certificate.cases if case.graph == graph)
    error = f"max error {outputs.max_absolute_error:.2e} (limit {_limit(tolerances)})"
    return Check(name, passed, f"{error} at {outputs.positions_compared} positions")


def _limit(tolerances: Tolerances) -> str:
    parts = {"|value|": tolerances.relative, "largest |value|": tolerances.of_largest}
    return " + ".join([f"{tolerances.absolute:.2g}", *(f"{part:g} x {of}" for of, part in parts.items() if part)])


def _divergences(certificate: Certificate) -> list[Check]:
    limits, own = certificate.limits, certificate.divergence
    if limits is None:
        return []
    every = [] if own is None else _divergence(own, limits)
    for agreement in certificate.sequences:
        if agreement.divergence is not None and agreement.divergence != own:
            every += _divergence(agreement.divergence, limits)
    return every


def _divergence(divergence: Divergence, limits: Limits) -> list[Check]:
    name, passed = "divergence from float32", divergence.within(limits)
    if isinstance(divergence, ValueDivergence):
        figure = (
            f"mean difference {divergence.mean_difference:.2g} (limit {limits.difference:g}), "
            f"max {divergence.max_difference:.2g} deviations; {divergence.num_items} {divergence.held_out} items"
        )
        return [Check(name, passed, figure)]
    if isinstance(divergence, DensityDivergence):
        before, after = divergence.negative_log_likelihood_float32, divergence.negative_log_likelihood
        figure = (
            f"KL {divergence.kl_divergence:.2g} nats (limit {limits.kl_divergence:g}), negative log-likelihood "
            f"{before:.4f} -> {after:.4f} (limit {math.log(limits.perplexity_ratio):+.2g}); "
            f"{divergence.num_items} {divergence.held_out} items"
        )
        return [Check(name, passed, figure)]
    if isinstance(divergence, AnswerDivergence):
        figure = (
            f"mean difference {divergence.mean_difference:.2g} (limit {limits.answers:g}), max "
            f"{divergence.max_difference:.2g} deviations; {divergence.num_answers} answers, {divergence.held_out} items"
        )
        return [Check(name, passed, figure)]
    if isinstance(divergence, LabelDivergence):
        figure = (
            f"KL {divergence.kl_divergence:.2g} nats (limit {limits.kl_divergence:g}), {divergence.equal_labels:.1%} "
            f"of {divergence.num_labels} labels equal (limit {limits.equal_labels:.0%}); {divergence.held_out} items"
        )
        return [Check(name, passed, figure)]
    ratio = divergence.perplexity / divergence.perplexity_float32
    return [
        Check(
            name,
            passed,
            f"KL {divergence.kl_divergence:.2g} nats (limit {limits.kl_divergence:g}), perplexity "
            f"{divergence.perplexity_float32:.2f} -> {divergence.perplexity:.2f}, ratio {ratio:.4f} "
            f"(limit {limits.perplexity_ratio:g}); {divergence.num_tokens} {divergence.held_out} tokens",
        ),
        # Reported, and bounded by nothing: at a near tie any change turns the choice, and greedy runs part for good.
        Check(
            "greedy tokens as in float32",
            True,
            f"{divergence.equal_greedy:.1%} position by position; the first {divergence.common_prefix:.0f} "
            f"of {divergence.num_generated} in a row",
        ),
    ]


def table(certificate: Certificate) -> Table:
    """The checks as a terminal table."""
    result = Table(title=f"Certificate of {certificate.model}/{certificate.version}, variant {certificate.variant}")
    for column in ("check", "result", "figure"):
        result.add_column(column)
    for check in checks(certificate):
        verdict = "[green]passed[/]" if check.passed else "[red]missed[/]"
        result.add_row(check.name, verdict, check.figure)
    for case in certificate.cases:
        if not case.passed:
            result.add_row(f"  {_case_name(case)}", "[red]missed[/]", f"max error {case.max_absolute_error:.2e}")
    return result


def render(certificates: Sequence[Certificate], report: ReportFormat) -> str:
    """The report's text."""
    if report is ReportFormat.JSON:
        return "[\n" + ",\n".join(c.to_json().strip() for c in certificates) + "\n]\n"
    if report is ReportFormat.MARKDOWN:
        return "\n".join(_markdown(c) for c in certificates)
    return _junit(certificates)


def _tokens(name: str, tokens: TokenAgreement) -> Check:
    ties = f", {tokens.near_ties} within a near tie" if tokens.near_ties else ""
    return Check(name, tokens.all_equal, f"{tokens.equal} of {tokens.compared} equal{ties}")


def _markdown(certificate: Certificate) -> str:
    verdict = "passed" if certificate.passed else "**missed**"
    lines = [
        f"### {certificate.model}/{certificate.version} {certificate.variant}: {verdict}",
        "",
        "| check | result | figure |",
        "| --- | --- | --- |",
    ]
    lines += [
        f"| {c.name} | {'passed' if c.passed else 'missed'} | {c.figure.replace('|', '&#124;')} |"
        for c in checks(certificate)
    ]
    versions = ", ".join(f"{name} {version}" for name, version in certificate.libraries.items())
    return "\n".join([*lines, "", f"{len(certificate.cases)} cases; {versions}", ""])


def _junit(certificates: Sequence[Certificate]) -> str:
    root = ET.Element("testsuites")
    for certificate in certificates:
        rows = [(c.name, c.passed, c.figure) for c in checks(certificate)]
        rows += [(_case_name(c), c.passed, f"max error {c.max_absolute_error:.2e}") for c in certificate.cases]
        name = f"{certificate.model}/{certificate.version} {certificate.variant}"
        failures = sum(not passed for _, passed, _ in rows)
        suite = ET.SubElement(
            root, "testsuite", name=name, tests=str(len(rows)), failures=str(failures), errors="0", skipped="0"
        )
        for title, passed, figure in rows:
            case = ET.SubElement(suite, "testcase", classname=name, name=title)
            if passed:
                ET.SubElement(case, "system-out").text = figure
            else:
                ET.SubElement(case, "failure", message=figure)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _case_name(case: Case) -> str:
    if case.graph != "step":
        return f"{case.graph}: {case.batch_size} rows, sequences up to {case.prompt_length}"
    chunk = f"chunks of {case.chunk}" if case.chunk else "whole"
    mixed = " beside rows that decode" if case.mixed else ""
    sources = f", sources up to {case.source_length}" if case.source_length else ""
    return f"outputs: {case.batch_size} rows, prompts up to {case.prompt_length}{sources}, {chunk}{mixed}"
