"""The models that the tests serve."""

from __future__ import annotations

import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from statewise.bundles.manifest import Manifest, SpecialTokens
from statewise.bundles.reader import Bundle, hash_file

START, END = 0, 1

MODELS: dict[str, dict[str, Any]] = {
    "gru-text": {"plugin": "gru", "text": True, "hidden_size": 32, "num_layers": 1, "dropout": 0.1},
    "lstm-2": {"plugin": "lstm", "vocabulary_size": 300, "hidden_size": 40, "num_layers": 2, "dropout": 0.3},
    "rnn-1": {"plugin": "rnn", "vocabulary_size": 61, "hidden_size": 24, "num_layers": 1},
    "markov": {"plugin": "markov", "vocabulary_size": 61},
    "autoregressive": {
        "plugin": "autoregressive",
        "vocabulary_size": 61,
        "window": 5,
        "embedding_size": 7,
        "hidden_sizes": (19, 13),
        "activation": "tanh",
        "dropout": 0.1,
    },
    "transformer": {
        "plugin": "transformer",
        "vocabulary_size": 300,
        "hidden_size": 64,
        "num_layers": 2,
        "num_heads": 8,
        "num_key_value_heads": 2,
        "max_positions": 400,
        "dropout": 0.1,
    },
    "gru-series": {"plugin": "gru", "features": 3, "hidden_size": 16, "num_layers": 1},
    "lstm-mixture": {"plugin": "lstm", "features": 3, "hidden_size": 16, "head": {"kind": "mixture", "components": 4}},
    "transformer-mixture": {
        "plugin": "transformer",
        "features": 3,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "max_positions": 300,
        "head": {"kind": "mixture", "components": 3, "covariance": "full"},
    },
}
"""Plugin and configuration by name; `text` gives the model a byte tokenizer with <start> and <end>."""


def byte_tokenizer() -> Tokenizer:
    """Ids 0 and 1 are <start> and <end>, then one id per byte."""
    specials = {"<start>": START, "<end>": END}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab=specials | {c: i + 2 for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in specials])
    return tokenizer


def make_checkpoint(name: str, folder: Path, *, seed: int = 0, options: dict[str, Any] | None = None) -> Any:
    """Write a checkpoint of the model, or of one with other options, with random weights, and load it."""
    import torch

    from statewise.plugins import load_plugin
    from statewise_training.checkpoints.checkpoint import load_checkpoint, save_checkpoint

    options = dict(MODELS[name] if options is None else options)
    plugin = load_plugin(options.pop("plugin"))
    is_text = options.pop("text", False)
    if is_text:
        options["vocabulary_size"] = byte_tokenizer().get_vocab_size()
    config = plugin.config_class(**options)
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer_file = Path(scratch) / "tokenizer.json"
        byte_tokenizer().save(str(tokenizer_file))
        save_checkpoint(
            folder,
            name=name,
            plugin_name=plugin.name,
            config=config,
            module=plugin.build(config),
            special_tokens=SpecialTokens(start=START, end=END) if is_text else SpecialTokens(),
            tokenizer_file=tokenizer_file if is_text else None,
        )
    return load_checkpoint(folder)


@cache
def checkpoint_of(name: str) -> Any:
    """The checkpoint of a model of this module."""
    return make_checkpoint(name, Path(tempfile.mkdtemp()) / name)


@cache
def exported(name: str) -> Path:
    """The folder of the model's versions, of which there is one; exported once, and not to be written to."""
    from statewise_export.pipeline import export_checkpoint

    made = export_checkpoint(checkpoint_of(name), Path(tempfile.mkdtemp()))
    assert made.folder is not None, made.certificates
    return made.folder.parent


def make_repository(root: Path, *names: str) -> Path:
    """A model repository of these models."""
    for name in names:
        shutil.copytree(exported(name), root / name)
    return root


@cache
def draft_bundle(name: str, variant_name: str) -> Bundle:
    """The graphs of one variant, without a certificate: for runs on a device that it is not meant for."""
    return draft_of(checkpoint_of(name), variant_name)


def draft_of(checkpoint: Any, variant_name: str = "cpu-float32", tracer: Any = None) -> Bundle:
    """The graphs of one variant of a checkpoint, without a certificate; `tracer` may have traced it before."""
    from statewise_export.graphs.variant import Tracer, write_variant
    from statewise_export.passes.variants import VARIANTS

    folder = Path(tempfile.mkdtemp())
    variant = write_variant(variant_name, VARIANTS[variant_name], tracer or Tracer(checkpoint), folder)
    tokenizer = checkpoint.tokenizer_file and Path(checkpoint.tokenizer_file).name
    if tokenizer:
        shutil.copyfile(checkpoint.folder / tokenizer, folder / tokenizer)
    own = (*variant.graphs, *variant.data, *([tokenizer] if tokenizer else []))
    files = {file: hash_file(folder / file) for file in own}
    manifest = Manifest(
        name=checkpoint.name,
        version=1,
        plugin=checkpoint.plugin.name,
        plugin_config=checkpoint.config.model_dump(mode="json"),
        model=checkpoint.plugin.spec(checkpoint.config),
        variants={variant_name: variant},
        created_with={},
        files=files | {variant.certificate: "0" * 64},
        special_tokens=checkpoint.special_tokens,
        tokenizer=tokenizer or None,
    )
    return Bundle(folder, manifest)


def start_engine(bundle: Bundle, **settings: Any) -> Any:
    """An engine that serves a bundle, certified or not, until it is closed."""
    from statewise_server.engine import Engine, EngineSettings

    given = EngineSettings(**{"state_memory": "256MB", "intra_op_threads": 1} | settings)
    engine = Engine.load(bundle, "cpu-float32", given)
    engine.start()
    return engine


def reference_decoder(name: str) -> Any:
    """The PyTorch reference of a model of this module."""
    from statewise_training.reference.decoding import ReferenceDecoder

    checkpoint = checkpoint_of(name)
    return ReferenceDecoder(checkpoint.module, checkpoint.plugin.spec(checkpoint.config))
