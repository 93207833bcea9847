import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from statewise.bundles.reader import open_bundle
from statewise.bundles.writer import BundleDraft
from statewise.errors import BundleError, UnavailableError
from statewise_server.engine.settings import EngineSettings
from statewise_server.repository.trial import TrialLimits, run_child, try_bundle
from tests.small_bundles import CERTIFICATE, CONTENT, STEP, VARIANT, write_bundle

SETTINGS = EngineSettings(max_rows=2, intra_op_threads=1)


def attempt(folder: Path, settings: EngineSettings = SETTINGS, **limits: float) -> None:
    try_bundle(open_bundle(folder), VARIANT, settings, TrialLimits(**limits))


def constant(name: str, value: list[int] | int | bool) -> TensorProto:
    return numpy_helper.from_array(np.array(value), name)


def test_a_good_bundle_passes(tmp_path: Path) -> None:
    """A bundle that loads and runs is let through, whatever the settings."""
    folder = write_bundle(tmp_path)

    attempt(folder)
    attempt(folder, SETTINGS.model_copy(update={"cuda_graphs": False}))


def test_a_graph_that_onnx_runtime_refuses_is_named(tmp_path: Path) -> None:
    """An operator that does not exist is ONNX Runtime's to refuse, and its reason is reported."""
    unknown = helper.make_node("NoSuchOperator", ["added"], ["x"])

    with pytest.raises(BundleError, match=f"{VARIANT} cannot be loaded: {STEP}: .*NoSuchOperator"):
        attempt(write_bundle(tmp_path, change=lambda model: model.graph.node.append(unknown)))


def test_a_graph_that_fails_when_run_is_refused(tmp_path: Path) -> None:
    """What loads but cannot run once is refused at warm-up."""

    def divide_the_indivisible(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(constant("shape", [7, -1]))
        model.graph.node[3].CopyFrom(helper.make_node("Reshape", ["new_state.sum", "shape"], ["next_items"]))

    with pytest.raises(BundleError, match="Reshape"):
        attempt(write_bundle(tmp_path, change=divide_the_indivisible))


def test_a_graph_that_takes_all_memory_is_refused(tmp_path: Path) -> None:
    """A tensor of 4 TiB, made by an operator and so declared nowhere, meets the child's limit."""

    def fill_memory(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(constant("shape", [2**40]))
        model.graph.node.append(helper.make_node("ConstantOfShape", ["shape"], ["huge"]))
        model.graph.output.append(helper.make_tensor_value_info("huge", TensorProto.FLOAT, [2**40]))

    with pytest.raises(BundleError, match="cannot be loaded: "):
        attempt(write_bundle(tmp_path, change=fill_memory))


def test_a_graph_that_crashes_onnx_runtime_is_refused(tmp_path: Path) -> None:
    """Functions nested 3,000 deep overflow the native stack; that ends the child, not this process."""
    depth = 3000
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]

    def nest(model: onnx.ModelProto) -> None:
        model.opset_import.append(opsets[1])
        for level in range(depth):
            call = helper.make_node(f"F{level + 1}", ["x"], ["y"], domain="local")
            model.functions.append(helper.make_function("local", f"F{level}", ["x"], ["y"], [call], opsets))
        end = helper.make_node("Neg", ["x"], ["y"])
        model.functions.append(helper.make_function("local", f"F{depth}", ["x"], ["y"], [end], opsets))
        model.graph.node[3].CopyFrom(helper.make_node("F0", ["new_state.sum"], ["next_items"], domain="local"))

    with pytest.raises(BundleError, match="its trial was ended by SIGSEGV"):
        attempt(write_bundle(tmp_path, change=nest))


def _run_forever(model: onnx.ModelProto) -> None:
    condition = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("go", "go_on")]
    index = helper.make_tensor_value_info("index", TensorProto.INT64, [])
    carried = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["row", 2]) for name in ("v", "v_out")]
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Sin", ["v"], ["v_out"])],
        "body",
        [index, condition[0], carried[0]],
        [condition[1], carried[1]],
    )
    model.graph.initializer.extend([constant("trips", 2**62), constant("yes", True)])
    model.graph.node[3].CopyFrom(helper.make_node("Loop", ["trips", "yes", "new_state.sum"], ["next_items"], body=body))


def test_a_graph_that_never_ends_is_refused(tmp_path: Path) -> None:
    """A hang is ended by the clock."""
    with pytest.raises(BundleError, match=r"did not end within 2\.5 s"):
        attempt(write_bundle(tmp_path, change=_run_forever), seconds=2.5)


def test_a_graph_that_computes_too_long_is_refused(tmp_path: Path) -> None:
    """Processor time is limited by itself, for machines where the clock says little."""
    with pytest.raises(BundleError, match=r"SIGXCPU \(out of processor time\)"):
        attempt(write_bundle(tmp_path, change=_run_forever), cpu_seconds=2)


def test_a_damaged_tokenizer_is_refused(tmp_path: Path) -> None:
    """A tokenizer is loaded by a native library too, so it is on trial as well."""

    def put_tokenizer(draft: BundleDraft) -> None:
        (draft.folder / "tokenizer.json").write_text('{"version": "1.0"')

    folder = write_bundle(tmp_path, before_commit=put_tokenizer, content=replace(CONTENT, tokenizer="tokenizer.json"))

    with pytest.raises(BundleError, match=r"tokenizer\.json: cannot be loaded"):
        attempt(folder)


def test_the_command_tells_the_reason(tmp_path: Path) -> None:
    """`python -m statewise_server.repository.trial` can be run by hand; the last line it prints is the reason."""
    folder = write_bundle(tmp_path)
    (folder / CERTIFICATE).write_text("{}")
    command = [sys.executable, "-m", "statewise_server.repository.trial", str(folder), VARIANT]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"{CERTIFICATE}: ")
    assert "Traceback" not in done.stderr


def shell(script: str) -> list[str]:
    return ["sh", "-c", script]


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        ("exit 0", None),
        ("echo one >&2; echo 'the reason' >&2; echo >&2; exit 1", "the reason"),
        ("exit 7", "its trial ended with exit code 7 and no message"),
        ("kill -SEGV $$", "its trial was ended by SIGSEGV"),
        (
            "echo 'free(): invalid pointer' >&2; kill -ABRT $$",
            "its trial was ended by SIGABRT: free(): invalid pointer",
        ),
        ("kill -KILL $$", "its trial was ended by SIGKILL (out of memory?)"),
        ("kill -42 $$", "its trial was ended by signal 42"),
        ("printf '\\377\\376' >&2; exit 1", "\ufffd\ufffd"),
    ],
)
def test_every_end_of_a_child_is_told(script: str, fault: str | None) -> None:
    """Success, a reason, a code without one, and a native crash each have their words."""
    assert run_child(shell(script), 10.0, threading.Event()) == fault


def test_a_talkative_child_is_cut_short() -> None:
    """However much a child writes, the reason stays short."""
    fault = run_child(shell("head -c 5000000 /dev/zero | tr '\\0' x >&2; exit 1"), 10.0, threading.Event())

    assert fault is not None
    assert set(fault) == {"x"}
    assert len(fault) <= 4096


def test_a_cancelled_child_is_killed(tmp_path: Path) -> None:
    """When the server stops, a trial under way ends at once, with the processes that it started."""
    cancelled = threading.Event()
    threading.Timer(0.3, cancelled.set).start()
    mark = tmp_path / "survived"

    with pytest.raises(UnavailableError, match="stopping"):
        run_child(shell(f"(sleep 1; touch {mark}) & sleep 30"), 60.0, cancelled)
    time.sleep(1.2)

    assert not mark.exists()
