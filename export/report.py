"""A certificate for people (table, Markdown) and for CI (JUnit XML, JSON)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from xml.etree import ElementTree as ET

from rich.table import Table

from statewise.certificate import Case, Certificate, TokenAgreement

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
    limit = f"{tolerances.absolute:g} + {tolerances.relative:g} x |value|"
    if tolerances.of_largest:
        limit = f"{tolerances.absolute:g} + {tolerances.of_largest:g} x largest |value|"
    lines = [
        Check(
            "outputs against PyTorch",
            all(case.passed for case in certificate.cases),
            f"max error {outputs.max_absolute_error:.2e} (limit {limit}) at {outputs.positions_compared} positions",
        )
    ]
    lines += [
        _tokens(name, tokens)
        for name, tokens in (
            ("greedy tokens", certificate.greedy_tokens),
            ("sampled tokens", certificate.sampled_tokens),
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


def render(certificates: list[Certificate], report: ReportFormat) -> str:
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


def _junit(certificates: list[Certificate]) -> str:
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
    return f"outputs: {case.batch_size} rows, prompts up to {case.prompt_length}, {chunk}"
