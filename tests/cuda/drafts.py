"""Variants for CUDA with what they are held against.

They are made on the spot, which needs all of statewise[train]. For a machine with a GPU and little else, they are made
elsewhere and the folder is carried over:

    python -m tests.cuda.drafts FOLDER                       where statewise[train,dev] is
    CUDA_DRAFTS=FOLDER python -m pytest -m cuda tests/cuda   where the GPU is

That machine needs pytest, pytest-timeout, numpy, onnx, onnxscript, onnxruntime-gpu with NVIDIA's libraries, torch,
pydantic, grpcio, protobuf, tokenizers, and this folder installed (`pip install --no-deps -e .`).
"""

from __future__ import annotations

import os
import shutil
import sys
from functools import cache
from pathlib import Path

import numpy as np

from statewise.bundles.manifest_file import MANIFEST_FILE, decode_manifest, encode_manifest
from statewise.bundles.reader import Bundle

MODELS = ("lstm-2", "gru-text", "rnn-1", "transformer")
VARIANTS = ("cuda-float32", "cuda-float16")
_REFERENCE_FILE = "reference.npz"


@cache
def draft(name: str, variant: str) -> Bundle:
    """A variant without a certificate."""
    folder = os.environ.get("CUDA_DRAFTS")
    if folder is None:
        from tests.models import draft_bundle

        return draft_bundle(name, variant)
    place = Path(folder) / f"{name}.{variant}"
    return Bundle(place, decode_manifest((place / MANIFEST_FILE).read_bytes()))


def checkpoint(name: str, bundle: Bundle):  # only where torch is
    """The checkpoint of a draft: the PyTorch side of its certificate."""
    from tests.models import checkpoint_of

    if "CUDA_DRAFTS" not in os.environ:
        return checkpoint_of(name)
    import torch

    from statewise.plugins import load_plugin
    from statewise_training.checkpoints.checkpoint import Checkpoint

    manifest = bundle.manifest
    plugin = load_plugin(manifest.plugin)
    config = plugin.config_class.model_validate(manifest.plugin_config)
    module = plugin.build(config)
    with np.load(bundle.folder / _REFERENCE_FILE) as arrays:
        module.load_state_dict({key: torch.from_numpy(array) for key, array in arrays.items()})
    tokenizer = bundle.path(manifest.tokenizer) if manifest.tokenizer else None
    return Checkpoint(name, plugin, config, module.eval(), manifest.special_tokens, tokenizer, bundle.folder, ())


def main(folder: Path) -> None:
    """Write every draft and its reference."""
    from tests.models import checkpoint_of

    for name in MODELS:
        state = {key: tensor.numpy() for key, tensor in checkpoint_of(name).module.state_dict().items()}
        for variant in VARIANTS:
            bundle = draft(name, variant)
            place = folder / f"{name}.{variant}"
            shutil.copytree(bundle.folder, place)
            (place / MANIFEST_FILE).write_bytes(encode_manifest(bundle.manifest))
            np.savez(place / _REFERENCE_FILE, **state)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
