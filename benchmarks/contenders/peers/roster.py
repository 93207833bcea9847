"""Roster of peers; each converts the model from the same Hugging Face folder by its own converter."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.contenders.process import Contender, ContenderError
from benchmarks.models import hugging_face_folder, vocabulary_size
from statewise.bundles.reader import Bundle

ENVIRONMENT = Path(__file__).parents[2] / ".peers"
PYTHON = ENVIRONMENT / "bin" / "python"

Command = Callable[[Path, Path], list[str]]
"""Functions (Hugging Face folder, output folder) -> command to run in the environment."""


@dataclass(frozen=True)
class Peer:
    """Peer in one precision."""

    name: str
    module: str
    model: str
    """Key of its conversion in CONVERSIONS."""
    precision: str = ""
    """Precision in the peer's own spelling; its default where empty."""


PEERS = (
    Peer("OpenVINO GenAI float32", "openvino_genai_queue", "openvino-float32", "f32"),
    Peer("OpenVINO GenAI default", "openvino_genai_queue", "openvino-float32"),
    Peer("OpenVINO GenAI int8", "openvino_genai_queue", "openvino-int8"),
    Peer("CTranslate2 float32", "ctranslate2_batches", "ctranslate2-float32", "float32"),
    Peer("CTranslate2 int8", "ctranslate2_batches", "ctranslate2-int8", "int8"),
)


def _openvino(weight_format: str) -> Command:
    return lambda source, output: [
        "optimum-cli", "export", "openvino", "--model", str(source), "--task", "text-generation-with-past",
        "--weight-format", weight_format, str(output),
    ]  # fmt: skip


def _ctranslate2(quantization: str) -> Command:
    return lambda source, output: [
        "ct2-transformers-converter", "--model", str(source), "--output_dir", str(output),
        "--quantization", quantization,
    ]  # fmt: skip


CONVERSIONS: dict[str, Command] = {
    "openvino-float32": _openvino("fp32"),
    "openvino-int8": _openvino("int8"),
    "ctranslate2-float32": _ctranslate2("float32"),
    "ctranslate2-int8": _ctranslate2("int8"),
}


def peer_contender(peer: Peer, bundle: Bundle) -> Contender:
    """Return the peer, converting its model on the first call; raises ContenderError if that fails."""
    if not PYTHON.exists():
        raise ContenderError(f"there is no {ENVIRONMENT}; `make bench-peers` makes it")
    source = hugging_face_folder(bundle)
    output = source.parent / peer.model
    if not output.is_dir():
        _convert(CONVERSIONS[peer.model], source, output, vocabulary_size(bundle))
    arguments = (str(output), str(vocabulary_size(bundle)), peer.precision)
    return Contender(peer.name, f"benchmarks.contenders.peers.{peer.module}", arguments, python=str(PYTHON))


def _convert(command: Command, source: Path, output: Path, num_tokens: int) -> None:
    with _with_tokenizer(source, num_tokens) as folder:
        unfinished = folder / "converted"
        program, *arguments = command(folder, unfinished)
        done = subprocess.run(
            [str(PYTHON.parent / program), *arguments],
            env=os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            last = (done.stdout.strip().splitlines() or ["no output"])[-1]
            raise ContenderError(f"the conversion failed: {last}")
        shutil.move(unfinished, output)


@contextmanager
def _with_tokenizer(source: Path, num_tokens: int) -> Iterator[Path]:
    """Add a tokenizer with one word per id to the folder: converters require one, though it is not used."""
    with TemporaryDirectory(dir=source.parent) as scratch:
        folder = Path(scratch)
        for file in source.iterdir():
            (folder / file.name).symlink_to(file.resolve())
        words = {word(token): token for token in range(num_tokens)}
        content = {
            "version": "1.0",
            "added_tokens": [],
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "model": {"type": "WordLevel", "vocab": words, "unk_token": word(0)},
        }
        (folder / "tokenizer.json").write_text(json.dumps(content))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | dict.fromkeys(
            ("bos_token", "eos_token", "unk_token"), word(0)
        )
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        yield folder


def word(token: int) -> str:
    """Name of a token id in the converted models' tokenizer."""
    return f"t{token}"
