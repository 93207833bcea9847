"""A certificate for people (table, Markdown) and for CI (JUnit XML, JSON): one line for each check."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from xml.etree import ElementTree as ET

from rich.table import Table

from statewise.bundles.certificate import Case, Certificate


class ReportFormat(StrEnum):
    """Formats of `--report`."""

    JUNIT = "junit"
    JSON = "json"
    MARKDOWN = "markdown"


def table(certificate: Certificate) -> Table:
    """The checks as a terminal table."""
    result = Table(title=f"Certificate of {certificate.model}/{certificate.version}, variant {certificate.variant}")
    for column in ("check", "result", "figure"):
        result.add_column(column)
    for check in certificate.checks:
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
        for c in certificate.checks
    ]
    versions = ", ".join(f"{name} {version}" for name, version in certificate.libraries.items())
    return "\n".join([*lines, "", f"{len(certificate.cases)} cases; {versions}", ""])


def _junit(certificates: Sequence[Certificate]) -> str:
    root = ET.Element("testsuites")
    for certificate in certificates:
        rows = [(c.name, c.passed, c.figure) for c in certificate.checks]
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
