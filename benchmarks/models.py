"""The models that are measured: random weights, exported and certified once, kept in `benchmarks/.models`."""

from __future__ import annotations

from pathlib import Path

from statewise.bundle import find_bundle, list_models

REPOSITORY = Path(__file__).parent / ".models"


def lstm_name(vocabulary_size: int) -> str:
    """Name of the 2-layer LSTM, hidden 512, with this vocabulary."""
    return f"lstm-512x2-{vocabulary_size}"


def ensure_lstm(vocabulary_size: int) -> Path:
    """The bundle of that LSTM; made on the first call."""
    name = lstm_name(vocabulary_size)
    if not (REPOSITORY.is_dir() and name in list_models(REPOSITORY)):
        _export(name, vocabulary_size)
    return find_bundle(REPOSITORY, name)


def _export(name: str, vocabulary_size: int) -> None:
    import tempfile

    import torch

    from export.pipeline import export_checkpoint
    from statewise.plugins import load_plugin
    from training.checkpoint import load_checkpoint, save_checkpoint

    plugin = load_plugin("lstm")
    config = plugin.config_class.model_validate(
        {"vocabulary_size": vocabulary_size, "hidden_size": 512, "num_layers": 2}
    )
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        save_checkpoint(folder, name=name, plugin_name="lstm", config=config, module=plugin.build(config))
        exported = export_checkpoint(load_checkpoint(folder), REPOSITORY, progress=lambda s: print(f"  {name}: {s}"))
    if exported.folder is None:
        raise SystemExit(f"{name}: the certificate was missed")
