"""A certificate for people (table, Markdown) and for CI (JUnit XML, JSON)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from xml.etree import ElementTree as ET

from rich.table import Table

from statewise.certificate import Case, Certificate, DensityDivergence, TokenAgreement, Tolerances, ValueDivergence

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
    tolerances, outputs = certificate.tolerances, certificate.outputs
    against = "PyTorch" if certificate.reference == "pytorch" else "single steps"
    error = f"max error {outputs.max_absolute_error:.2e} (limit {_limit(tolerances)})"
    lines = [
        Check(
            f"outputs against {against}",
            all(case.passed for case in certificate.cases),
            f"{error} at {outputs.positions_compared} positions",
        )
    ]
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
            _BATCH[tolerances.batch] if certificate.batch_invariant else "differs",
        )
    )
    lines.append(
        Check(
            "prompt in chunks = whole",
            certificate.chunk_invariant,
            "within limit" if certificate.chunk_invariant else "differs",
        )
    )
    return [*lines, *_divergence(certificate)]


def _limit(tolerances: Tolerances) -> str:
    parts = {"|value|": tolerances.relative, "largest |value|": tolerances.of_largest}
    return " + ".join([f"{tolerances.absolute:.2g}", *(f"{part:g} x {of}" for of, part in parts.items() if part)])


def _divergence(certificate: Certificate) -> list[Check]:
    divergence, limits = certificate.divergence, certificate.limits
    if divergence is None or limits is None:
        return []
    if isinstance(divergence, ValueDivergence):
        figure = (
            f"mean difference {divergence.mean_difference:.2g} (limit {limits.difference:g}), "
            f"max {divergence.max_difference:.2g} deviations; {divergence.num_items} {divergence.held_out} items"
        )
        return [Check("divergence from float32", certificate.is_close, figure)]
    if isinstance(divergence, DensityDivergence):
        before, after = divergence.negative_log_likelihood_float32, divergence.negative_log_likelihood
        figure = (
            f"KL {divergence.kl_divergence:.2g} nats (limit {limits.kl_divergence:g}), negative log-likelihood "
            f"{before:.4f} -> {after:.4f} (limit {math.log(limits.perplexity_ratio):+.2g}); "
            f"{divergence.num_items} {divergence.held_out} items"
        )
        return [Check("divergence from float32", certificate.is_close, figure)]
    ratio = divergence.perplexity / divergence.perplexity_float32
    return [
        Check(
            "divergence from float32",
            certificate.is_close,
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
    passed = tokens.equal + tokens.near_ties == tokens.compared
    return Check(name, passed, f"{tokens.equal} of {tokens.compared} equal{ties}")


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
    chunk = f"chunks of {case.chunk}" if case.chunk else "whole"
    mixed = " beside rows that decode" if case.mixed else ""
    return f"outputs: {case.batch_size} rows, prompts up to {case.prompt_length}, {chunk}{mixed}"
