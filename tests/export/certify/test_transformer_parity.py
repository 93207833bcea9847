"""Every kind of Transformer, exported and run by the server's runtime, against the PyTorch reference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from statewise.bundles.reader import open_bundle
from statewise.plugins import load_plugin
from statewise.rules.sampling import GREEDY, SamplingParams
from statewise_export.certify.driver import RuntimeDecoder
from statewise_export.pipeline import export_checkpoint
from statewise_server.runtime.steps.runner import Runner
from statewise_training.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from statewise_training.reference.decoding import ReferenceDecoder
from tests.models import draft_of, make_checkpoint

VARIANT = "cpu-float32"
VOCABULARY, POSITIONS = 61, 160
LENGTHS = (1, 2, 63, 64, 65, POSITIONS - 1)
CHUNKS = (16, None)

GROUPED = {"num_heads": 8, "num_key_value_heads": 2, "head_size": 8}
SHAPES: dict[str, dict[str, Any]] = {
    # Every export takes seconds, so each value stands in one row at least: schemes of positions, norms before and
    # behind, activations, heads in groups and not, biases and tied embeddings or none. What GPT-2 and Llama combine is
    # served in tests/training/test_hugging_face.py.
    "rotary": {**GROUPED, "positions": "rotary", "activation": "gelu", "num_layers": 2},
    "learned": {"positions": "learned", "norm_position": "post", "activation": "gelu_tanh", "tied_embeddings": True},
    "sinusoidal": {**GROUPED, "positions": "sinusoidal", "norm": "rms_norm", "activation": "relu", "bias": False},
    "none": {
        "positions": "none",
        "norm": "rms_norm",
        "norm_position": "post",
        "activation": "swiglu",
        "bias": False,
        "tied_embeddings": True,
    },
    "vectors": {**GROUPED, "vocabulary_size": None, "features": 5},
}


@dataclass
class Pair:
    """One model in PyTorch and in the server's runtime."""

    reference: ReferenceDecoder
    decoder: RuntimeDecoder

    @property
    def reads_tokens(self) -> bool:
        return self.reference.spec.input.kind == "tokens"

    def prompts(self, *lengths: int) -> list[np.ndarray[Any, Any]]:
        rng = np.random.default_rng(7)
        if self.reads_tokens:
            return [rng.integers(0, VOCABULARY, length) for length in lengths]
        return [rng.standard_normal((length, 5)).astype(np.float32) for length in lengths]


@pytest.fixture(scope="module", params=SHAPES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Random weights, far from the small initial ones, so that every part shows in the output."""
    folder, plugin = tmp_path_factory.mktemp("parity"), load_plugin("transformer")
    sizes = {"vocabulary_size": VOCABULARY, "max_positions": POSITIONS, "hidden_size": 32, "num_layers": 1}
    config = plugin.config_class.model_validate({**sizes, **SHAPES[request.param]})
    torch.manual_seed(2)
    module = plugin.build(config)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + parameter)
    name = request.param
    save_checkpoint(folder / name, name=name, plugin_name="transformer", config=config, module=module)
    checkpoint = load_checkpoint(folder / name)
    exported = export_checkpoint(checkpoint, folder / "models")
    assert exported.folder is not None, exported.certificate
    runner = Runner.load(open_bundle(exported.folder), VARIANT, max_rows=len(LENGTHS), intra_op_threads=1)
    return Pair(ReferenceDecoder(checkpoint.module, plugin.spec(config)), RuntimeDecoder(runner))


@pytest.mark.parametrize("chunk", CHUNKS)
def test_logits_are_pytorchs(pair: Pair, chunk: int | None) -> None:
    """Ragged prompts from 1 item to one below the limit: the output at the end of every chunk, within 1e-4."""
    prompts = pair.prompts(*LENGTHS)
    expected = pair.reference.outputs(prompts)

    prefilled = pair.decoder.prefill(prompts, [GREEDY] * len(prompts), chunk)

    for row, (length, outputs) in enumerate(zip(LENGTHS, prefilled.outputs, strict=True)):
        assert len(outputs) == -(-length // (chunk or length))
        for position, output in outputs.items():
            np.testing.assert_allclose(output, expected[row][position], atol=1e-4, rtol=0)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_what_is_generated_is_pytorchs(pair: Pair, chunk: int | None) -> None:
    """Greedy and sampled tokens are equal, and vectors that are fed back within 1e-4, up to the last position."""
    prompts = pair.prompts(*LENGTHS[:-1])
    count = POSITIONS - max(map(len, prompts)) if pair.reads_tokens else 16
    near_limit = pair.prompts(LENGTHS[-1])
    sampled = SamplingParams(seed=5), SamplingParams(seed=6, temperature=0.7, top_k=9, repetition_penalty=1.2)
    for params in (GREEDY, *(sampled if pair.reads_tokens else ())):
        for rows, num_items in ((prompts, count), (near_limit, 1)):
            expected, _ = pair.reference.generate(rows, [params] * len(rows), num_items)
            actual, _ = pair.decoder.generate(rows, [params] * len(rows), num_items, chunk=chunk, steps_per_run=(1,))

            for row, other in zip(actual, expected, strict=True):
                np.testing.assert_allclose(row, other, atol=0 if pair.reads_tokens else 1e-4, rtol=0)


def test_more_threads_than_heads_change_no_number(tmp_path: Path) -> None:
    """ONNX Runtime would cut a long cache among idle threads where few rows decode, and add up otherwise."""
    sizes = {"vocabulary_size": VOCABULARY, "max_positions": 256, "hidden_size": 16, "num_layers": 1}
    heads = {"num_heads": 2, "num_key_value_heads": 1, "head_size": 1024}
    checkpoint = make_checkpoint("few-heads", tmp_path, options={"plugin": "transformer", **sizes, **heads})
    with torch.no_grad():
        for parameter in checkpoint.module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + parameter)
    runner = Runner.load(draft_of(checkpoint), VARIANT, max_rows=3, intra_op_threads=5)
    decoder, rng = RuntimeDecoder(runner), np.random.default_rng(7)
    prompts = [rng.integers(0, VOCABULARY, 230) for _ in range(3)]

    _, together = decoder.generate(prompts, [GREEDY] * 3, 6)
    alone = [decoder.generate([prompt], [GREEDY], 6)[1][0] for prompt in prompts]

    for row, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(row, other)
