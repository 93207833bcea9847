"""Exported models on a bad disk: each damaged one is refused by name, beside one that is served."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from statewise.plugins import load_plugin
from statewise_export.pipeline import export_checkpoint
from statewise_server.engine.settings import EngineSettings
from statewise_server.repository.repository import Repository
from statewise_training.checkpoints.checkpoint import load_checkpoint, save_checkpoint

SETTINGS = EngineSettings(max_rows=2, intra_op_threads=1)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export a GRU whose weights are large enough to lie in a file of their own."""
    folder = tmp_path_factory.mktemp("exported")
    plugin = load_plugin("gru")
    config = plugin.config_class.model_validate({"vocabulary_size": 40, "hidden_size": 32})
    torch.manual_seed(1)
    save_checkpoint(folder / "checkpoint", name="gru", plugin_name="gru", config=config, module=plugin.build(config))
    bundle = export_checkpoint(load_checkpoint(folder / "checkpoint"), folder / "models").folder
    assert bundle is not None
    return bundle


@pytest.fixture
def models(exported: Path, tmp_path: Path) -> Path:
    """Copy the bundle into a repository, so that a test may damage it."""
    shutil.copytree(exported, tmp_path / "gru" / "1")
    return tmp_path


def refusal(models: Path) -> str:
    """Load the repository without the trial; return why the model is refused."""
    repository = Repository(models, SETTINGS, trial=False)
    repository.load_all()
    try:
        (entry,) = repository.entries()
        assert entry.state == "refused"
        return entry.reason
    finally:
        repository.close(0.0)


def damages(path: Path, count: int) -> Iterator[bytes]:
    """Yield the file's content with one bit turned, at some places."""
    intact, places = path.read_bytes(), random.Random(path.name)
    for _ in range(count):
        damaged = bytearray(intact)
        damaged[places.randrange(len(damaged))] ^= 1 << places.randrange(8)
        yield bytes(damaged)


def test_an_exported_model_is_served(models: Path) -> None:
    """What export makes passes the trial and is ready, however it is copied."""
    repository = Repository(models, SETTINGS)
    repository.load_all()

    assert [entry.state for entry in repository.entries()] == ["ready"]
    repository.close(0.0)


def test_a_turned_bit_in_any_file_is_refused(models: Path) -> None:
    """One bit, anywhere in any file of an exported bundle, refuses it and names the file."""
    for path in sorted((models / "gru" / "1").iterdir()):
        intact = path.read_bytes()
        for damaged in damages(path, 12):
            path.write_bytes(damaged)
            assert refusal(models).startswith(path.name)
        path.write_bytes(intact)


def test_a_missing_file_is_refused(models: Path) -> None:
    """Any file of an exported bundle, deleted, refuses it and is named."""
    for path in sorted((models / "gru" / "1").iterdir()):
        intact = path.read_bytes()
        path.unlink()
        assert refusal(models).startswith(path.name)
        path.write_bytes(intact)
