"""`statewise export` and `statewise verify`, as a person or a CI job runs them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

import statewise_export.graphs.variant
from statewise.bundles.manifest_file import decode_manifest, encode_manifest
from statewise.bundles.reader import hash_file
from statewise_export.trace.trace import trace_step
from tests.export.conftest import Outcome, Statewise, in_a_process
from tests.small_bundles import write_bundle


def test_export_makes_a_certified_bundle(exported: tuple[Path, Outcome]) -> None:
    """A good run exits with 0, shows the checks and the next command; the bundle is there, the report is JSON."""
    repository, outcome = exported

    assert outcome.code == 0, outcome.stderr
    assert (repository / "small" / "1" / "manifest.json").is_file()
    assert "greedy tokens" in outcome.stderr
    assert "missed" not in outcome.stderr
    assert f"Serve it: statewise serve --models {repository}\n" in outcome.stderr
    (certificate,) = json.loads(outcome.stdout)
    assert certificate["passed"] is True
    assert (certificate["model"], certificate["version"]) == ("small", 1)


def test_verify_makes_the_certificate_again(exported: tuple[Path, Outcome]) -> None:
    """The newest version in a model's folder is verified, exit code 0, with the figures of then and now."""
    outcome = in_a_process("verify", exported[0] / "small")

    assert outcome.code == 0, outcome.stderr
    assert "largest error at export" in outcome.stderr
    assert outcome.stdout == ""


def test_a_second_export_is_the_next_version(statewise: Statewise, checkpoint: Path, bundle: Path) -> None:
    """Without --version the next free number is taken; --name makes another model of the same checkpoint."""
    repository = bundle.parent.parent

    codes = [statewise("export", checkpoint, "--to", repository, *more).code for more in ([], ["--name", "other.one"])]

    assert codes == [0, 0]
    assert sorted(path.name for path in (repository / "small").iterdir()) == ["1", "2"]
    assert (repository / "other.one" / "1" / "manifest.json").is_file()


@pytest.mark.parametrize("to_file", [True, False])
def test_reports_can_be_parsed(statewise: Statewise, bundle: Path, tmp_path: Path, to_file: bool) -> None:
    """JUnit XML, JSON and Markdown come out whole, on standard output or in a file, and say the same."""
    texts = {}
    for kind in ("junit", "json", "markdown"):
        file = tmp_path / f"report.{kind}"
        outcome = statewise("verify", bundle, "--report", kind, *(["--report-file", file] if to_file else []))

        assert outcome.code == 0, outcome.stderr
        texts[kind] = file.read_text() if to_file else outcome.stdout
        assert (outcome.stdout == "") is to_file

    suite = ET.fromstring(texts["junit"]).find("testsuite")  # noqa: S314 # our own
    assert suite is not None
    assert int(suite.attrib["tests"]) == len(suite.findall("testcase")) > 20
    assert suite.attrib["failures"] == "0"
    (certificate,) = json.loads(texts["json"])
    assert certificate["passed"]
    assert len(certificate["cases"]) + len(certificate["checks"]) == int(suite.attrib["tests"])
    assert "### small/1 cpu-float32: passed" in texts["markdown"]
    rows = [line for line in texts["markdown"].splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(certificate["checks"])
    assert {row.count("|") for row in rows} == {4}


def break_the_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tracing lose a hundredth of the head's first bias."""

    def trace(*arguments: Any) -> Any:
        traced = trace_step(*arguments)
        name = next(name for name in traced.weights if name.endswith("output.bias"))
        traced.weights[name] = traced.weights[name] + np.float32(0.01)
        return traced

    monkeypatch.setattr(statewise_export.graphs.variant, "trace_step", trace)


def test_a_missed_export_exits_with_1(
    statewise: Statewise, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 1, a table that says what was missed and by how much, a report with failures, and no bundle."""
    break_the_trace(monkeypatch)

    outcome = statewise("export", checkpoint, "--to", tmp_path / "models", "--report", "junit")

    assert outcome.code == 1
    assert "no bundle was made" in outcome.error
    assert "outputs against PyTorch" in outcome.stderr
    assert "1.00e-02" in outcome.stderr
    assert "Serve it" not in outcome.stderr
    suite = ET.fromstring(outcome.stdout).find("testsuite")  # noqa: S314 # our own
    assert suite is not None
    assert int(suite.attrib["failures"]) == len(suite.findall("testcase/failure")) > 1
    assert not (tmp_path / "models" / "small").exists()


def put_behind_the_output(monkeypatch: pytest.MonkeyPatch, *nodes: onnx.NodeProto) -> None:
    """Let tracing put nodes from `own.output` to `output` behind the head."""

    def trace(*arguments: Any) -> Any:
        traced = trace_step(*arguments)
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in traced.nodes]
        for copy in copies:
            copy.output[:] = ["own.output" if name == "output" else name for name in copy.output]
        return replace(traced, nodes=[*copies, *nodes])

    monkeypatch.setattr(statewise_export.graphs.variant, "trace_step", trace)


@pytest.mark.parametrize(
    ("nodes", "stage"),
    [
        ([helper.make_node("NoSuchOperator", ["own.output"], ["output"])], "cpu-float32: graph 'step'"),
        (
            [
                helper.make_node("Shape", ["own.output"], ["own.sizes"]),
                helper.make_node("Constant", [], ["more"], value_ints=[1, 0]),
                helper.make_node("Add", ["own.sizes", "more"], ["sizes"]),
                helper.make_node("Reshape", ["own.output", "sizes"], ["output"]),
            ],
            "cpu-float32: outputs at every position",
        ),
    ],
    ids=["invalid", "breaks off"],
)
def test_a_graph_that_cannot_run_exits_with_1(
    nodes: list[onnx.NodeProto],
    stage: str,
    statewise: Statewise,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One message names the variant, the stage and the library's reason; it is no fault to be reported."""
    put_behind_the_output(monkeypatch, *nodes)

    outcome = statewise("export", checkpoint, "--to", tmp_path / "models")

    assert outcome.code == 1
    assert stage in outcome.error
    assert "report it" not in outcome.error
    assert not (tmp_path / "models" / "small").exists()


def test_a_module_that_cannot_be_traced_exits_with_1(
    statewise: Statewise, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exporter's own exception becomes one message that names the part of the module."""

    def trace(*_: Any) -> Any:
        raise torch.onnx.OnnxExporterError("Failed to decompose the FX graph")

    monkeypatch.setattr(statewise_export.graphs.variant, "trace_step", trace)
    outcome = statewise("export", checkpoint, "--to", tmp_path / "models")

    assert outcome.code == 1
    assert outcome.error.startswith("tracing the module (step): ")
    assert "OnnxExporterError: Failed to decompose" in outcome.error


def forge(bundle: Path) -> None:
    """Change a weight, and every hash that would tell."""
    weights = next(bundle.glob("weights.*.data"))
    numbers = np.fromfile(weights, np.float32)
    numbers[: len(numbers) // 2] += np.float32(0.01)
    manifest = decode_manifest((bundle / "manifest.json").read_bytes())
    numbers.tofile(weights)
    certificate = next(bundle.glob("certificate.*.json"))
    text = certificate.read_text().replace(manifest.files[weights.name], hash_file(weights))
    certificate.write_text(text)
    files = manifest.files | {file.name: hash_file(file) for file in (weights, certificate)}
    (bundle / "manifest.json").write_bytes(encode_manifest(manifest.model_copy(update={"files": files})))


def test_verify_finds_a_bundle_that_lies(statewise: Statewise, bundle: Path) -> None:
    """Weights that are not the checkpoint's, under hashes that fit, are found by running them: exit code 1."""
    forge(bundle)

    outcome = statewise("verify", bundle, "--report", "markdown")

    assert outcome.code == 1
    assert "cpu-float32" in outcome.error
    assert "**missed**" in outcome.stdout


@pytest.mark.parametrize(
    "name",
    [
        "manifest.json",
        "step.cpu-float32.onnx",
        "decode.cpu-float32.onnx",
        "weights.cpu-float32.data",
        "certificate.cpu-float32.json",
        "checkpoint.json",
        "model.safetensors",
    ],
)
def test_verify_refuses_a_flipped_byte(statewise: Statewise, bundle: Path, name: str) -> None:
    """One bit turned in the middle of any file is exit code 2 and a message that names the file."""
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)

    outcome = statewise("verify", bundle)

    assert outcome.code == 2
    assert name in outcome.error


def test_verify_refuses_what_is_no_bundle(statewise: Statewise, tmp_path: Path) -> None:
    """No folder, an empty folder, and a bundle without its checkpoint are each told apart."""
    (tmp_path / "empty").mkdir()
    cases = {
        tmp_path / "nowhere": "no such folder",
        tmp_path / "empty": "neither a bundle",
        write_bundle(tmp_path / "models"): "holds no checkpoint.json",
    }
    for path, message in cases.items():
        outcome = statewise("verify", path)

        assert outcome.code == 2
        assert message in outcome.error


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--name", "../escape"], "'../escape' cannot be a model's name"),
        (["--name", ""], "'' cannot be a model's name"),
        (["--version", "1"], "1"),
        (["--report-file", "report.xml"], "--report junit, json or markdown"),
        (["--report", "json", "--report-file", "no/such/folder/report.json"], "no/such/folder/report.json"),
    ],
)
def test_bad_options_are_refused(
    options: list[str], part: str, statewise: Statewise, checkpoint: Path, bundle: Path
) -> None:
    """A name that no model can have, a version that exists, a report that cannot be written: exit code 2, no bundle."""
    repository = bundle.parent.parent

    outcome = statewise("export", checkpoint, "--to", repository, *options)

    assert outcome.code == 2
    assert part in outcome.error
    assert [path.name for path in repository.glob("*/*")] == ["1"]


@pytest.mark.parametrize("options", [["--version", "0"], ["--version", "one"], ["--report", "pdf"], ["--nonsense"]])
def test_options_that_cannot_be_read_are_refused(options: list[str], statewise: Statewise, checkpoint: Path) -> None:
    """A usage error is exit code 2 and names the option."""
    outcome = statewise("export", checkpoint, "--to", "models", *options)

    assert outcome.code == 2
    assert options[0] in outcome.stderr


@pytest.mark.parametrize("place", ["a file", "below a file", "/proc/models"])
def test_a_repository_that_cannot_be_written_is_refused(
    place: str, statewise: Statewise, checkpoint: Path, tmp_path: Path
) -> None:
    """A file in the way, and a place where no folder can be made, are exit code 2 and named."""
    (tmp_path / "file").touch()
    target = {"a file": tmp_path / "file", "below a file": tmp_path / "file" / "models"}.get(place, Path(place))

    outcome = statewise("export", checkpoint, "--to", target)

    assert outcome.code == 2
    assert str(target) in outcome.error.replace("\n", "")
