import queue
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from statewise.errors import BundleError, ConfigError, InvalidRequestError, NotFoundError, UnavailableError
from statewise.rules.sampling import GREEDY
from statewise_server.engine.generation.engine import Engine
from statewise_server.engine.generation.state_memory import default_state_memory
from statewise_server.engine.request import Delta, GenerationRequest, Stream
from statewise_server.engine.settings import EngineSettings
from statewise_server.repository.repository import Repository
from statewise_server.runtime.ort.providers import why_not
from tests.small_bundles import CERTIFICATE, CONTENT, DATA, STEP, VARIANT, write_bundle
from tests.small_encoders import write_sums

SETTINGS = EngineSettings(max_rows=2, intra_op_threads=1)


class Inbox:
    """A channel that a test reads."""

    def __init__(self) -> None:
        self.deltas: queue.Queue[Delta] = queue.Queue()

    def deliver(self, events: list[tuple[Stream, Delta]]) -> None:
        for _, delta in events:
            self.deltas.put(delta)

    def collect(self) -> Delta:
        whole = Delta()
        while not whole.is_last:
            whole.merge(self.deltas.get(timeout=10))
        return whole


def generate(engine: Engine, count: int) -> Inbox:
    inbox = Inbox()
    prompt = np.array([[1, 2], [3, 4]], np.float32)
    engine.submit(GenerationRequest(prompt, GREEDY, max_tokens=count), inbox)
    return inbox


def states(repository: Repository) -> dict[str, str]:
    return {str(entry): entry.state for entry in repository.entries()}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Write two versions of `a`, and one of `b`."""
    for name, version in (("a", 1), ("a", 2), ("b", 1)):
        write_bundle(tmp_path, name, version)
    return tmp_path


@pytest.fixture
def closing() -> Iterator[list[Repository]]:
    """Close the repositories that a test opens, also where it fails."""
    opened: list[Repository] = []
    yield opened
    for repository in opened:
        repository.close(0.0)


def loaded(root: Path, closing: list[Repository], *, variant: str | None = None, trial: bool = False) -> Repository:
    repository = Repository(root, SETTINGS, variant, trial)
    closing.append(repository)
    repository.load_all()
    return repository


def test_the_newest_versions_are_served(models: Path, closing: list[Repository]) -> None:
    """After a trial the newest versions answer: the sum of [1,2] and [3,4], then doubled each step."""
    repository = loaded(models, closing, trial=True)

    assert states(repository) == {"a/2": "ready", "b/1": "ready"}
    assert [entry.variant for entry in repository.entries()] == [VARIANT, VARIANT]
    assert repository.get("a") is repository.get("a", 2)
    items = generate(repository.get("a"), 3).collect().items
    assert np.array_equal(items, [[4, 6], [8, 12], [16, 24]])


def test_a_damaged_model_stops_no_other(models: Path, closing: list[Repository]) -> None:
    """A model whose only version is damaged is refused with the file's name; the others are served."""
    flip(models / "b" / "1" / DATA)
    repository = loaded(models, closing)

    assert states(repository) == {"a/2": "ready", "b/1": "refused"}
    assert DATA in repository.entries()[1].reason
    with pytest.raises(BundleError, match=f"model b/1 is refused: {DATA}: changed since"):
        repository.get("b")


def test_a_refused_version_gives_way_to_the_one_before(models: Path, closing: list[Repository]) -> None:
    """Where the newest version is damaged the older one is served, and both are reported."""
    (models / "a" / "2" / CERTIFICATE).unlink()
    repository = loaded(models, closing)

    assert states(repository) == {"a/1": "ready", "a/2": "refused", "b/1": "ready"}
    assert repository.get("a") is repository.get("a", 1)
    with pytest.raises(BundleError, match=f"a/2 is refused: {CERTIFICATE}: .*missing"):
        repository.get("a", 2)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from([STEP, DATA, CERTIFICATE, "manifest.json"]), place=st.floats(0, 1, exclude_max=True))
def test_any_flipped_byte_is_refused_beside_a_good_model(
    tmp_path_factory: pytest.TempPathFactory, name: str, place: float
) -> None:
    """Whatever byte is damaged, that model is refused by the file's name, and the other is served."""
    root = tmp_path_factory.mktemp("models")
    damaged = write_bundle(root, "damaged") / name
    write_bundle(root, "good")
    data = bytearray(damaged.read_bytes())
    data[int(place * len(data))] ^= 0x10
    damaged.write_bytes(data)
    repository = Repository(root, SETTINGS, trial=False)
    try:
        repository.load_all()

        assert states(repository) == {"damaged/1": "refused", "good/1": "ready"}
        assert repository.entries()[0].reason.startswith(name)
    finally:
        repository.close(0.0)


def test_unknown_names_are_answered_with_the_known(models: Path, closing: list[Repository]) -> None:
    """A wrong name or version is told from one that is on disk but not served."""
    repository = loaded(models, closing)

    with pytest.raises(NotFoundError, match=r"no model 'c' \(models here: a, b\)"):
        repository.get("c")
    with pytest.raises(NotFoundError, match=r"version 9 of model 'a' does not exist \(served: 2\)"):
        repository.get("a", 9)
    with pytest.raises(NotFoundError, match=r"version 1 of model 'a' is on disk, but not served"):
        repository.get("a", 1)


def test_a_model_is_unavailable_until_loaded(models: Path, closing: list[Repository]) -> None:
    """Before loading has ended, a model is known, and its user is told to wait."""
    repository = Repository(models, SETTINGS)
    closing.append(repository)

    assert states(repository) == {"a/2": "loading", "b/1": "loading"}
    with pytest.raises(UnavailableError, match="model a/2 is still loading"):
        repository.get("a")


def _use_custom_operator(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Run", ["added"], ["x"], domain="evil"))


@pytest.mark.parametrize("trial", [True, False])
def test_graphs_are_checked_with_and_without_a_trial(tmp_path: Path, closing: list[Repository], trial: bool) -> None:
    """A custom operator is refused where the trial checks the graph, and where the server does."""
    write_bundle(tmp_path, change=_use_custom_operator)
    repository = loaded(tmp_path, closing, trial=trial)

    with pytest.raises(BundleError, match="domain 'evil'"):
        repository.get("sum")


@pytest.mark.skipif(why_not("cuda") is None, reason="this machine has CUDA")
def test_a_variant_for_a_missing_device_is_refused_with_the_reason(tmp_path: Path, closing: list[Repository]) -> None:
    """Asked for a variant for CUDA, a machine without it says what is missing."""
    variant = CONTENT.variants[VARIANT].model_copy(update={"device": "cuda"})
    write_bundle(tmp_path, content=replace(CONTENT, variants={"cuda-float32": variant}))

    (entry,) = loaded(tmp_path, closing, variant="cuda-float32").entries()

    assert entry.state == "refused"
    assert entry.reason == f"variant cuda-float32 needs cuda, which is not available here: {why_not('cuda')}"


def test_a_variant_that_a_bundle_lacks_is_refused(models: Path, closing: list[Repository]) -> None:
    """Asking for a variant that was not exported refuses the model and names those that were."""
    repository = loaded(models, closing, variant="cuda-float16")

    with pytest.raises(BundleError, match=rf"no variant 'cuda-float16' \(it has: {VARIANT}\)"):
        repository.get("a")


def test_a_missing_repository_is_a_config_error(tmp_path: Path) -> None:
    """A mistyped folder is named at once."""
    with pytest.raises(ConfigError, match="nothing"):
        Repository(tmp_path / "nothing", SETTINGS)


def test_half_written_and_foreign_folders_are_no_models(models: Path, closing: list[Repository]) -> None:
    """Drafts, lock files and folders without a version are passed over."""
    shutil.copytree(models / "a" / "2", models / ".a.3.draft")
    (models / "empty").mkdir()
    repository = loaded(models, closing)

    assert states(repository) == {"a/2": "ready", "b/1": "ready"}


def test_a_model_whose_state_exceeds_the_memory_is_refused(models: Path, closing: list[Repository]) -> None:
    """The trial, which needs one row only, passes it; the reason has the numbers and the flag to set."""
    settings = SETTINGS.model_copy(update={"state_memory": 15})
    repository = Repository(models, settings)
    closing.append(repository)
    repository.load_all()

    assert set(states(repository).values()) == {"refused"}
    with pytest.raises(BundleError, match="needs 16 B of state, and the budget is 15 B; raise --state-memory to 16"):
        repository.get("b")


def test_the_models_share_the_free_memory(models: Path, closing: list[Repository]) -> None:
    """Without a setting, two models get half each of what the server may take for state."""
    repository = loaded(models, closing)

    budgets = [repository.get(name).memory.budget for name in ("a", "b")]
    assert budgets == [pytest.approx(default_state_memory("cpu", 2), rel=0.2)] * 2


def test_closing_lets_what_runs_complete(models: Path) -> None:
    """Within the grace a running stream gets all its items; new requests are refused at once."""
    repository = Repository(models, SETTINGS, trial=False)
    repository.load_all()
    engine = repository.get("a")
    inbox = generate(engine, 100)

    repository.close(10.0)

    whole = inbox.collect()
    assert (len(whole.items), whole.finish_reason) == (100, "length")
    with pytest.raises(UnavailableError):
        generate(engine, 1)
    with pytest.raises(UnavailableError, match="stopping"):
        repository.get("a")


def test_closing_ends_a_load_under_way(models: Path) -> None:
    """A server that is told to stop while it loads ends its trials and its loading threads at once."""
    repository = Repository(models, SETTINGS)
    loader = threading.Thread(target=repository.load_all)
    threads = threading.active_count()
    loader.start()
    time.sleep(0.15)  # in the middle of the trials, which take longer
    started = time.monotonic()

    repository.close(5.0)
    loader.join(5)

    assert time.monotonic() - started < 2
    assert threading.active_count() == threads
    assert all(entry.engine is None for entry in repository.entries())
    with pytest.raises(UnavailableError, match="stopping"):
        repository.get("a")


def test_closing_twice_or_before_loading_does_nothing(models: Path) -> None:
    """Close may be called at any time, and loading afterwards loads nothing."""
    repository = Repository(models, SETTINGS, trial=False)
    repository.close(0.0)
    repository.close(0.0)
    repository.load_all()

    assert all(entry.engine is None for entry in repository.entries())


def test_a_one_shot_model_is_served_beside_generating_ones(models: Path, closing: list[Repository]) -> None:
    """It passes the trial and answers; each kind of model refuses what is the other's, naming the rpc."""
    write_sums(models)
    repository = loaded(models, closing, trial=True)

    assert states(repository) == {"a/2": "ready", "b/1": "ready", "sums/1": "ready"}
    answer = repository.predictor("sums").batcher("predict").submit(np.array([1, 2])).result(10)
    assert answer["output"].tolist() == [3, 30]
    with pytest.raises(InvalidRequestError, match="'sums' does not generate; use Predict"):
        repository.get("sums")
    with pytest.raises(InvalidRequestError, match="'a' cannot Predict: it only generates; use Generate"):
        repository.predictor("a").batcher("predict")
    repository.close(1.0)
    with pytest.raises(UnavailableError, match="stopping"):
        repository.predictor("sums")


def test_a_one_shot_graph_that_fails_when_run_is_refused(tmp_path: Path, closing: list[Repository]) -> None:
    """The trial runs it once in the child process: a graph that cannot run never becomes ready."""

    def divide_the_indivisible(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.array([7, -1]), "shape"))
        model.graph.node[-2].CopyFrom(helper.make_node("Reshape", ["kept", "shape"], ["output"]))

    write_sums(tmp_path, change=divide_the_indivisible)
    (entry,) = loaded(tmp_path, closing, trial=True).entries()

    assert entry.state == "refused"
    assert "Reshape" in entry.reason
