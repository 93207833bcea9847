"""Models for the benchmarks: random weights, exported and certified once, kept in `benchmarks/.models`."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from statewise.bundles.reader import Bundle, find_bundle, list_models, open_bundle
from statewise.model.spec import TokenInput

if TYPE_CHECKING:
    from statewise_training.checkpoints.checkpoint import Checkpoint

HOME = Path(__file__).parent / ".models"
"""Folder with one subfolder per model, a repository of that model alone, so that a server loads nothing else."""
REPOSITORY = "repository"
HUGGING_FACE = "hugging-face"

CPU_FLOAT32 = "cpu-float32"


@dataclass(frozen=True)
class GPT2Shape:
    """Sizes of a GPT-2: learned positions, GELU by tanh, tied embeddings, no end token."""

    num_layers: int = 12
    hidden_size: int = 768
    num_heads: int = 12
    vocabulary_size: int = 16_000
    max_positions: int = 512

    @property
    def name(self) -> str:
        """Name of the model, and of its folder."""
        return f"gpt2-{self.num_layers}x{self.hidden_size}-{self.vocabulary_size}"

    @property
    def num_weights_read(self) -> int:
        """Number of weights read per token: per layer four square and two feed-forward matrices, and the embedding."""
        return (12 * self.num_layers * self.hidden_size + self.vocabulary_size) * self.hidden_size


def ensure_lstm(vocabulary_size: int, home: Path = HOME) -> Bundle:
    """Return the 2-layer LSTM, hidden 512, with this vocabulary; made on the first call."""
    name = f"lstm-512x2-{vocabulary_size}"
    repository = home / name / REPOSITORY
    if not _is_there(repository, name):
        _make_lstm(repository, name, vocabulary_size)
    return open_newest(repository, name)


def ensure_gpt2(shape: GPT2Shape, variants: tuple[str, ...] = (), home: Path = HOME) -> Bundle:
    """Return a bundle of that shape with at least these variants (default: export's own), made on the first call."""
    repository = home / shape.name / REPOSITORY
    is_there = _is_there(repository, shape.name)
    if not is_there or not set(variants) <= set(open_newest(repository, shape.name).manifest.variants):
        _make_gpt2(repository, shape, variants)
    return open_newest(repository, shape.name)


def open_newest(repository: Path, name: str) -> Bundle:
    """Open the newest bundle of a model."""
    return open_bundle(find_bundle(repository, name), check_hashes=False)


def hugging_face_folder(bundle: Bundle) -> Path:
    """Folder with the same weights in the format of Hugging Face transformers, which the peers convert."""
    return bundle.folder.parents[2] / HUGGING_FACE


def vocabulary_size(bundle: Bundle) -> int:
    """Number of token ids of the bundle's model."""
    assert isinstance(bundle.manifest.model.input, TokenInput)
    return bundle.manifest.model.input.vocabulary_size


def _is_there(repository: Path, name: str) -> bool:
    return repository.is_dir() and name in list_models(repository)


def _make_lstm(repository: Path, name: str, vocabulary_size: int) -> None:
    import torch

    from statewise.plugins import load_plugin
    from statewise_training.checkpoints.checkpoint import load_checkpoint, save_checkpoint

    plugin = load_plugin("lstm")
    config = plugin.config_class.model_validate(
        {"vocabulary_size": vocabulary_size, "hidden_size": 512, "num_layers": 2}
    )
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        save_checkpoint(folder, name=name, plugin_name="lstm", config=config, module=plugin.build(config))
        _export(load_checkpoint(folder), repository)


def _make_gpt2(repository: Path, shape: GPT2Shape, variants: tuple[str, ...]) -> None:
    from statewise_training.checkpoints.checkpoint import load_checkpoint
    from statewise_training.checkpoints.hugging_face.importer import import_checkpoint

    source = repository.parent / HUGGING_FACE
    if not source.is_dir():
        _write_hugging_face(shape, source)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "checkpoint"
        import_checkpoint(source, folder, name=shape.name)
        options: dict[str, Any] = {"variants": variants} if variants else {}
        _export(load_checkpoint(folder), repository, **options)


def _write_hugging_face(shape: GPT2Shape, folder: Path) -> None:
    import torch
    import transformers

    config = transformers.GPT2Config(
        vocab_size=shape.vocabulary_size,
        n_positions=shape.max_positions,
        n_embd=shape.hidden_size,
        n_layer=shape.num_layers,
        n_head=shape.num_heads,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()
    transformers.GPT2LMHeadModel(config).eval().save_pretrained(folder)


def _export(checkpoint: Checkpoint, repository: Path, **options: Any) -> None:
    from statewise_export.pipeline import export_checkpoint

    name = checkpoint.name
    print(f"{name}: made once, kept in {repository.parent}", flush=True)
    exported = export_checkpoint(
        checkpoint, repository, progress=lambda stage: print(f"  {name}: {stage}", flush=True), **options
    )
    if exported.folder is None:
        raise SystemExit(f"{name}: the certificate was missed")
