"""The parts of the Transformer benchmark, on a tiny model."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import latency, memory
from benchmarks.contenders.peers import roster
from benchmarks.contenders.process import Contender, ContenderError
from benchmarks.contenders.turns import Field, Figures
from benchmarks.goals import Goal
from benchmarks.models import GPT2Shape
from benchmarks.report import Report
from benchmarks.transformer import add_rates, our_contenders
from benchmarks.workloads import TRANSFORMER_WORKLOADS, Workload, uniform
from statewise.bundles.reader import Bundle, find_bundle, open_bundle
from statewise_server.engine import EngineSettings

VARIANT = "cpu-float32"


@pytest.fixture(scope="module")
def bundle(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Copy the tests' Transformer into a repository that holds nothing else."""
    root = tmp_path_factory.mktemp("transformer") / "repository"
    shutil.copytree(repository / "transformer", root / "transformer")
    return open_bundle(find_bundle(root, "transformer"))


@pytest.fixture
def console() -> Console:
    """Keep what is printed."""
    return Console(file=io.StringIO(), width=200)


def test_everyone_is_measured_in_what_they_take_part_in(bundle: Bundle, console: Console, tmp_path: Path) -> None:
    """All of ours decode alike requests, a queue goes to who has one, and who cannot start is named with the reason."""
    ours = our_contenders(bundle, GPT2Shape(2, 64, 8, 300, 400), [VARIANT])
    broken = Contender("broken", "benchmarks.contenders.served", ("engine", str(bundle.folder), "cpu-int3"))
    workloads = [uniform("W1", 1, 8, 6), Workload("queue", (3, 70, 5), (4, 9, 2), max_running=2)]

    with Field([*ours, broken], console) as field:
        figures = {workload.name: field.measure(workload, rounds=1) for workload in workloads}
    report = Report("tiny", console)
    add_rates(report, [*ours, broken], figures, field.failures)
    report.write(tmp_path / "results.json")

    served = {"engine float32", "gRPC float32"}
    assert set(figures["W1"].rates) == served | {"bare loop float32", "weights read"}
    assert set(figures["queue"].rates) == served
    assert all(rate > 0 for found in figures.values() for rates in found.rates.values() for rate in rates)
    assert "cpu-int3" in field.failures["broken"]
    written = json.loads((tmp_path / "results.json").read_text())
    assert {"rates", "goals", "failures", "machine"} <= written.keys()
    assert "| W1 float32 through gRPC, of the engine | >= 0.95 |" in (tmp_path / "results.md").read_text()


def test_gaps_are_told_apart_by_what_arrives(bundle: Bundle) -> None:
    """Each stream's gaps count once, as undisturbed or not, and every long prompt has a first token."""
    scene = latency.Scene(num_streams=3, prompt_length=4, long_prompt_length=200, num_arrivals=2, tokens_between=8)

    settings = EngineSettings(max_rows=4, prefill_chunk=16, token_budget=16, intra_op_threads=1)
    gaps = latency.measure(bundle, VARIANT, settings, scene)

    # 200 items in chunks of 16: thirteen steps, in each of which every stream makes a token.
    assert len(gaps.arriving) >= 2 * 3 * 12
    assert len(gaps.quiet) >= 2 * 3 * 6
    assert len(gaps.first_token) == 2
    assert (gaps.first_token > 0).all()


def test_memory_is_that_of_full_rows(bundle: Bundle) -> None:
    """State is counted at full length, and the parts add up to what is resident."""
    found = memory.measure(bundle, VARIANT, max_rows=4)

    # Keys and values of 2 layers, 2 heads of 8 numbers, 400 positions.
    assert found["state"] == pytest.approx(4 * 2 * 2 * 2 * 400 * 8 * 4 / 2**20, abs=0.1)
    parts = ("libraries", "weights", "state", "the rest")
    assert sum(found[part] for part in parts) == pytest.approx(found["resident"], abs=0.5)


def test_workloads_are_the_issues_own() -> None:
    """Prompts and outputs lie in the stated ranges and differ from round to round, not from process to process."""
    ragged = TRANSFORMER_WORKLOADS["W3@16"]

    assert (len(ragged.prompt_lengths), ragged.max_running) == (64, 16)
    assert set(ragged.prompt_lengths) <= set(range(8, 129))
    assert set(ragged.output_lengths) <= set(range(16, 193))
    assert [p.tolist() for p in ragged.prompts(300)] == [p.tolist() for p in ragged.prompts(300)]
    assert ragged.warm_up().prompts(300)[0].tolist() != ragged.prompts(300)[0].tolist()


def test_a_goal_is_a_ratio_of_medians() -> None:
    """It is reached by the median, and there is no row where one side was not measured."""
    goal = Goal("engine, of the loop", "W1", "engine", "loop", 0.9)
    figures = Figures(uniform("W1", 1, 1, 1), {"engine": [1.0, 95.0, 99.0], "loop": [100.0]})

    assert goal.row({"W1": figures}) == ["engine, of the loop", ">= 0.9", "0.95", "yes"]
    assert goal.row({"W1": Figures(figures.workload, {"engine": [1.0]})}) is None


def test_a_peer_that_is_not_installed_is_said_so(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the command that installs it."""
    monkeypatch.setattr(roster, "PYTHON", tmp_path / "bin" / "python")

    with pytest.raises(ContenderError, match="make bench-peers"):
        roster.peer_contender(roster.PEERS[0], bundle)
