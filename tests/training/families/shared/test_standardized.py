"""Models of standardised series, in the units of the series."""

from pathlib import Path

import numpy as np
import pytest
import torch

from statewise.bundles.reader import open_bundle
from statewise.errors import ConfigError
from statewise.plugins import load_plugin
from statewise_export.pipeline import export_checkpoint, verify_bundle
from statewise_server.runtime.steps.runner import Runner
from statewise_training.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from statewise_training.data.standardization import Standardization

STANDARDIZATION = Standardization(mean=(100.0, -3.0), deviation=(25.0, 0.5))


def checkpoint(folder: Path, options: dict[str, int], standardization: Standardization) -> Checkpoint:
    plugin = load_plugin("gru")
    config = plugin.config_class.model_validate({"hidden_size": 12, **options})
    torch.manual_seed(4)
    save_checkpoint(
        folder,
        name="series",
        plugin_name="gru",
        config=config,
        module=plugin.build(config),
        standardization=standardization,
    )
    return load_checkpoint(folder)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return checkpoint(tmp_path_factory.mktemp("series"), {"features": 2}, STANDARDIZATION)


def predicted(series: Checkpoint, raw: np.ndarray) -> np.ndarray:
    """Standardise by hand, run the trained module, and turn its last output back."""
    mean, deviation = np.array(STANDARDIZATION.mean), np.array(STANDARDIZATION.deviation)
    items = torch.from_numpy(((raw - mean) / deviation).astype(np.float32))
    lengths = torch.full((len(raw),), raw.shape[1])
    with torch.inference_mode():
        hidden, _ = series.module(items, lengths, (torch.zeros(len(raw), 12),))
        output: np.ndarray = series.module.head(hidden[:, -1]).numpy()
    return output * deviation + mean


def test_the_module_in_raw_units_standardises_and_turns_back(series: Checkpoint) -> None:
    """It reads raw vectors and gives raw vectors; the trained module inside is untouched."""
    raw = np.random.default_rng(0).normal(STANDARDIZATION.mean, STANDARDIZATION.deviation, (3, 6, 2))
    module = series.in_raw_units()

    with torch.inference_mode():
        hidden, _ = module(torch.from_numpy(raw.astype(np.float32)), torch.full((3,), 6), (torch.zeros(3, 12),))
        output = module.head(hidden[:, -1]).numpy()

    assert output == pytest.approx(predicted(series, raw), rel=1e-5)
    assert not module.training


def test_the_exported_bundle_serves_raw_units(series: Checkpoint, tmp_path: Path) -> None:
    """A certified bundle reads and predicts the series as it is in the user's files, and can be verified again."""
    exported = export_checkpoint(series, tmp_path)
    assert exported.folder is not None
    runner = Runner.load(open_bundle(exported.folder), "cpu-float32", max_rows=3)
    raw = np.random.default_rng(1).normal(STANDARDIZATION.mean, STANDARDIZATION.deviation, (3, 6, 2))

    result = runner.step(slice(0, 3), raw.astype(np.float32), np.full(3, 6), np.zeros((3, 1), np.float32), num_rows=3)

    assert result.items[0] == pytest.approx(predicted(series, raw), rel=1e-5)
    assert verify_bundle(exported.folder)["cpu-float32"].remade.passed


@pytest.mark.parametrize("options", [{"features": 3}, {"vocabulary_size": 9}])
def test_a_standardization_of_another_size_is_refused(options: dict[str, int], tmp_path: Path) -> None:
    """Means that do not fit the model's features raise an error that names the file and both sizes."""
    loaded = checkpoint(tmp_path, options, STANDARDIZATION)

    with pytest.raises(ConfigError, match=r"checkpoint\.json: standardization is of 2 features, but .* reads (3|tok)"):
        export_checkpoint(loaded, tmp_path / "models")
    assert not list((tmp_path / "models").glob("series*"))
