"""Graphs of what models show: who has one, what is refused, and that padding on either side changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from statewise.bundles.reader import open_bundle
from statewise.errors import ConfigError
from statewise.model.spec import ModelSpec, RealInput, ValueHead
from statewise.plugins import load_plugin
from statewise_export.pipeline import export_checkpoint
from statewise_export.trace.trace import shown_shapes
from statewise_training.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tests.export.conftest import Statewise


def make(folder: Path, plugin_name: str, **options: Any) -> Checkpoint:
    plugin = load_plugin(plugin_name)
    config = plugin.config_class.model_validate(options)
    torch.manual_seed(0)
    module = plugin.build(config)
    save_checkpoint(folder, name="model", plugin_name=plugin_name, config=config, module=module)
    return load_checkpoint(folder)


def test_a_bidirectional_encoder_shows_its_gates_certified(tmp_path: Path) -> None:
    """Ragged rows in company show bit for bit what each shows alone, on the way back too."""
    labels = {"labels": ("a", "b"), "labels_per": "item"}
    checkpoint = make(tmp_path / "c", "lstm_encoder", vocabulary_size=11, hidden_size=8, max_positions=40, **labels)

    exported = export_checkpoint(checkpoint, tmp_path / "models", inspect=True)

    assert exported.folder is not None, exported.certificates
    assert open_bundle(exported.folder).variant("cpu-float32").inspect == "inspect.cpu-float32.onnx"
    (certificate,) = exported.certificates
    found = {agreement.graph: agreement for agreement in certificate.sequences}
    assert list(found) == ["predict", "inspect"]
    assert found["inspect"].batch_invariant
    assert found["inspect"].outputs.positions_compared > 500


@pytest.mark.parametrize(
    ("plugin_name", "more", "message"),
    [
        ("rnn", (), "--inspect: a model of plugin 'rnn' has neither attention nor gates"),
        (
            "gru",
            ("--variant", "cpu-int8"),
            "--inspect: only variants in float32 show what goes on; add one to cpu-int8",
        ),
    ],
)
def test_what_has_nothing_to_show_is_refused(
    plugin_name: str, more: tuple[str, ...], message: str, statewise: Statewise, tmp_path: Path
) -> None:
    """Exit code 2 before anything is traced, and no bundle."""
    make(tmp_path / "c", plugin_name, vocabulary_size=11, hidden_size=8)

    outcome = statewise("export", tmp_path / "c", "--to", tmp_path / "models", "--inspect", *more)

    assert outcome.code == 2
    assert outcome.error.startswith(message)
    assert not (tmp_path / "models").exists()


SHOWN: dict[str, Any] = {
    "nothing": lambda items: {},
    "a shape of its own": lambda items: {"gate.0": items.mean(1)},
    "integers": lambda items: {"gate.0": items.long()},
    "keys of another length": lambda items: {"attention.0": items[:, None] @ items.transpose(1, 2)[:, None, :, :3]},
}


@pytest.mark.parametrize("case", SHOWN)
def test_a_plugin_that_shows_something_else_is_told(case: str) -> None:
    """What the API does not know is refused with its name and shape."""

    class Shows(nn.Module):
        def inspect(self, items: Tensor, lengths: Tensor) -> dict[str, Tensor]:
            return SHOWN[case](items)

    spec = ModelSpec(input=RealInput(features=2), head=ValueHead(features=2), max_positions=9)

    with pytest.raises(ConfigError, match="`inspect` of the module shows"):
        shown_shapes(Shows(), spec)
