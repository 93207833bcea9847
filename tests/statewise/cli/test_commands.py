"""The `statewise` command, as a user runs it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

import statewise
from statewise import cli
from statewise.cli import groups
from statewise.errors import ConfigError, ParityError
from statewise_server.app import Application

PROGRAM = [sys.executable, "-c", "from statewise.cli import main; main()"]


def run(capfd: Any, *arguments: str) -> tuple[int, str, str]:
    """Run the command in this process; returns exit code, standard output and standard error."""
    with pytest.raises(SystemExit) as exit_info:
        cli.main(arguments)
    output, errors = capfd.readouterr()
    return int(exit_info.value.code or 0), output, errors


def announce(monkeypatch: Any, **values: str) -> None:
    entries = [EntryPoint(name, value, "statewise.commands") for name, value in values.items()]
    monkeypatch.setattr(groups, "entry_points", lambda group: entries)


def test_version(capfd: Any) -> None:
    """--version prints the version and nothing else."""
    assert run(capfd, "--version") == (0, f"statewise {statewise.__version__}\n", "")


def test_help_lists_the_commands_in_the_usual_order(capfd: Any) -> None:
    """--help teaches what there is to do, in the order in which it is done."""
    code, output, _ = run(capfd, "--help")

    places = [output.index(f"│ {name} ") for name in ("train", "export", "verify", "serve", "generate", "models")]
    assert (code, places) == (0, sorted(places))
    assert "The usual order: train, export, verify, serve, generate" in output


def test_every_setting_of_the_server_is_a_flag(capfd: Any) -> None:
    """`serve --help` has a flag for each setting, the engine's too."""
    from statewise_server.config import ServerSettings
    from statewise_server.engine.settings import EngineSettings

    _, output, _ = run(capfd, "serve", "--help")

    names = {*ServerSettings.model_fields, *EngineSettings.model_fields} - {"engine", "intra_op_threads"}
    missing = [name for name in names if f"--{name.replace('_', '-')} " not in output]
    assert missing == []
    assert "--threads " in output


def test_generate_streams_text_and_tells_the_seed(server: Application, capfd: Any) -> None:
    """Text goes to standard output; what a script does not want goes to standard error."""
    flags = ["--address", server.address, "--max-tokens", "20", "--temperature", "0.8", "--seed", "7"]

    code, output, errors = run(capfd, "generate", "text", "hello", *flags)
    again = run(capfd, "generate", "text", "hello", *flags)

    assert (code, output) == again[:2]
    assert output
    assert "seed 7, finish reason" in errors


def test_generate_gives_json(server: Application, capfd: Any) -> None:
    """--json prints one object with everything in it."""
    flags = ["--address", server.address, "--max-tokens", "3", "--logprobs", "1", "--json", "--tokens", "3,4,5"]

    code, output, _ = run(capfd, "generate", "plain", *flags)

    answer = json.loads(output)
    assert (code, len(answer["tokens"]), answer["finish_reason"]) == (0, 3, "length")
    assert [len(entry["top"]) for entry in answer["log_probabilities"]] == [1, 1, 1]
    assert answer["info"]["model"] == "plain"


def test_generate_prints_ids_where_there_is_no_text(server: Application, capfd: Any) -> None:
    """A model without a tokenizer streams its ids."""
    flags = ["--address", server.address, "--max-tokens", "3", "--tokens", "3,4,5"]
    _, output, _ = run(capfd, "generate", "plain", *flags)
    _, as_json, _ = run(capfd, "generate", "plain", *flags, "--json")

    assert [int(word) for word in output.split()] == json.loads(as_json)["tokens"]


def test_generate_reads_standard_input(server: Application) -> None:
    """A prompt of - is read from standard input."""
    command = [*PROGRAM, "generate", "text", "-", "--address", server.address, "--max-tokens", "2", "--json"]

    done = subprocess.run(command, input="four", capture_output=True, text=True, check=True)

    assert json.loads(done.stdout)["usage"]["prompt_tokens"] == 5


def test_interrupt_ends_generate_cleanly(server: Application) -> None:
    """Ctrl-C while a stream runs, which has no end token: exit code 130, no traceback, and the row is free."""
    command = [*PROGRAM, "generate", "plain", "--tokens", "3", "--address", server.address, "--max-tokens", "65536"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(1)

    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)

    engine = server.repository.get("plain")
    deadline = time.monotonic() + 10
    while engine.num_running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (process.returncode, b"Traceback" in errors, engine.num_running) == (130, False, 0)


def test_names_stay_whole_in_a_narrow_terminal(server: Application, capfd: Any, monkeypatch: Any) -> None:
    """`models` shortens neither the name that a client must give nor the variant."""
    monkeypatch.setenv("COLUMNS", "60")

    _, output, _ = run(capfd, "models", "--address", server.address)

    assert "text/1" in output
    assert "cpu-float32" in output


def test_models_lists_what_is_served_and_refused(server: Application, capfd: Any) -> None:
    """The table names every model; --json gives the same to programs."""
    code, output, _ = run(capfd, "models", "--address", server.address)
    _, as_json, _ = run(capfd, "models", "--address", server.address, "--json")

    states = {model["name"]: model["state"] for model in json.loads(as_json)}
    assert states == {"broken": "refused", "plain": "ready", "sum": "ready", "sums": "ready", "text": "ready"}
    assert code == 0
    assert all(name in output for name in states)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["models", "--address", "127.0.0.1:1"], "error: no Statewise server can be reached at 127.0.0.1:1"),
        (["generate", "m", "a", "--tokens", "1"], "error: --tokens: give a prompt or --tokens, not both"),
        (["generate", "m", "--tokens", "1,x"], "error: --tokens: must be ids with commas"),
        (["serve"], "models: Field required"),
        (["serve", "--models", "/nowhere"], "error: model repository /nowhere: No such file"),
        (["serve", "--models", "/nowhere", "--mixed-steps", "off"], "model repository /nowhere"),
        (
            ["serve", "--models", "/nowhere", "--mixed-steps", "perhaps"],
            "engine.mixed_steps: Input should be a valid bool",
        ),
        (["serve", "--models", "/nowhere", "--max-rows", "0"], "engine.max_rows: Input should be greater"),
        (["serve", "--models", "/nowhere", "--config", "/nowhere.yaml"], "there is no such file"),
        (["serve", "--port", "many"], "--port"),
        (["serve", "--models", "/nowhere", "--state-memory", "banana"], "engine.state_memory: could not parse value"),
        (["serve", "--models", "/nowhere", "--state-memory", "0"], "engine.state_memory: Input should be greater"),
        (["serve", "--models", "/nowhere", "--prefix-memory", "-1"], "engine.prefix_memory: could not parse value"),
        (["serve", "--models", "/nowhere", "--max-positions", "0"], "engine.max_positions: Input should be greater"),
        (["trian"], "No such command 'trian'. Did you mean 'train'?"),
    ],
)
def test_mistake_of_the_user(capfd: Any, arguments: list[str], message: str) -> None:
    """A mistake exits with 2 and one readable message, never a traceback."""
    code, _, errors = run(capfd, *arguments)

    assert (code, message in errors) == (2, True), errors
    assert "Traceback" not in errors


def test_folder_without_models_is_told(capfd: Any, tmp_path: Any) -> None:
    """An empty repository is a mistake, not a server without models."""
    code, _, errors = run(capfd, "serve", "--models", str(tmp_path))

    assert (code, "holds no model" in errors) == (2, True)


def fail(kind: str) -> None:
    """Fail as told."""
    raise {"parity": ParityError("differs"), "config": ConfigError("[bad]"), "bug": KeyError("oops")}[kind]


@pytest.mark.parametrize(
    ("kind", "code", "message"),
    [("parity", 1, "error: differs"), ("config", 2, "error: [bad]"), ("bug", 70, "error: KeyError: 'oops'")],
)
def test_exit_code_says_whose_fault_it_is(capfd: Any, monkeypatch: Any, kind: str, code: int, message: str) -> None:
    """1 is missed parity, 2 bad input, 70 a fault of ours; the message is printed as it is."""
    announce(monkeypatch, fail=f"{__name__}:fail")

    assert (run(capfd, "fail", kind)[0], message in run(capfd, "fail", kind)[2]) == (code, True)


def test_traceback_on_request(monkeypatch: Any) -> None:
    """STATEWISE_TRACEBACK=1 lets the error through, for whoever looks for its cause."""
    announce(monkeypatch, fail=f"{__name__}:fail")
    monkeypatch.setenv("STATEWISE_TRACEBACK", "1")

    with pytest.raises(KeyError):
        cli.main(["fail", "bug"])


def test_predict_answers_in_a_table_and_in_json_lines(capfd: Any, server: Application, tmp_path: Path) -> None:
    """Sequences of a file are answered in its order, in as many requests as it takes."""
    file = tmp_path / "sequences.jsonl"
    file.write_text("[1, 2]\n\n[0]\n[3]\n")
    options = ("predict", "sums", "--file", str(file), "--address", server.address)

    code, lines, _ = run(capfd, *options, "--json", "--batch-size", "2")
    _, table, _ = run(capfd, *options)

    answers = [json.loads(line) for line in lines.splitlines()]
    assert (code, [answer["label"] for answer in answers]) == (0, ["second", "first", "second"])
    assert answers[1]["probabilities"] == {"first": 0.5, "second": 0.5}
    assert [word in table for word in ("1 2", "second", "first", "0.500")] == [True] * 4


def test_score_reads_texts_and_standard_input(capfd: Any, server: Application) -> None:
    """A table of log-probabilities; with --json each of them; - reads a text from each line."""
    code, table, _ = run(capfd, "score", "text", "ab", "[b]", "--address", server.address)
    piped = subprocess.run(
        [*PROGRAM, "score", "text", "-", "--json", "--address", server.address],
        input="ab\nc\n",
        capture_output=True,
        text=True,
        check=True,
    )

    scores = [json.loads(line) for line in piped.stdout.splitlines()]
    assert code == 0
    assert "perplexity" in table
    assert "[b]" in table
    assert [score["text"] for score in scores] == ["ab", "c"]
    assert f"{scores[0]['total']:.4f}" in table
    assert len(scores[0]["log_probabilities"]) == len(scores[0]["tokens"]) == 2


@pytest.mark.parametrize(
    ("arguments", "content", "message"),
    [
        ((), "", "TEXT: give texts, or --file, and not both"),
        (("a", "--file", "x.jsonl"), "[1]", "TEXT: give texts, or --file, and not both"),
        (("--file", "x.jsonl"), "[1]\n{", "x.jsonl, sequence 2: this is no JSON"),
        (
            ("--file", "x.jsonl"),
            '{"a": 1}',
            "x.jsonl, sequence 1: must be a string, a list of ids",
        ),
        (("--file", "x.jsonl"), "[[1, 2], [3]]", "x.jsonl, sequence 1"),
    ],
)
def test_bad_sequences_are_told_with_their_place(
    capfd: Any,
    server: Application,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    content: str,
    message: str,
) -> None:
    """What is no sequence ends the command with exit code 2, the file and the line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.jsonl").write_text(content)

    code, _, errors = run(capfd, "predict", "sums", *arguments, "--address", server.address, "--json")

    assert code == 2
    assert message in errors
