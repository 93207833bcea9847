"""Markov and autoregressive models, exported and run by the server's runtime, against their definitions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from statewise.bundles.reader import open_bundle
from statewise.plugins import load_plugin
from statewise.rules.sampling import GREEDY
from statewise_export.certify.driver import RuntimeDecoder
from statewise_export.pipeline import export_checkpoint
from statewise_server.runtime.steps.runner import Runner
from statewise_training.checkpoints.checkpoint import load_checkpoint, save_checkpoint

VARIANT = "cpu-float32"
VOCABULARY = 37
LENGTHS = (1, 2, 3, 7, 64, 65)

# Tokens through layers and a table are also in tests.models, where the engine's invariance is proved.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "table": ("markov", {"vocabulary_size": VOCABULARY}),
    "tokens-linear": ("autoregressive", {"vocabulary_size": VOCABULARY, "window": 4, "embedding_size": 5}),
    "vectors-linear": ("autoregressive", {"features": 3, "window": 4}),
    "vectors-layers": ("autoregressive", {"features": 3, "window": 2, "hidden_sizes": (19,), "activation": "gelu"}),
}


@dataclass
class Pair:
    """One module in PyTorch, and its certified export in the server's runtime."""

    module: nn.Module
    decoder: RuntimeDecoder

    def prompts(self) -> list[np.ndarray[Any, Any]]:
        rng = np.random.default_rng(7)
        if self.decoder.runner.spec.input.kind == "tokens":
            return [rng.integers(0, VOCABULARY, length) for length in LENGTHS]
        return [rng.standard_normal((length, 3)).astype(np.float32) for length in LENGTHS]

    def defined_output(self, prompt: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The output after a prompt, as the family is defined."""
        module = self.module
        if hasattr(module, "table"):
            return module.table.numpy()[prompt[-1]]
        window = prompt[-module.window :]
        missing = module.window - len(window)
        if module.embedding is None:
            known = np.concatenate([np.zeros((missing, 3), np.float32), window - module.mean.numpy()])
        else:
            known = module.embedding.weight.numpy()[np.concatenate([np.zeros(missing, np.int64), window + 1])]
        return module.output(module.layers(torch.from_numpy(known.ravel()))).numpy()


@pytest.fixture(scope="module", params=SHAPES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Random weights, far from the small initial ones, so that every part shows in the output."""
    folder, (family, options) = tmp_path_factory.mktemp("parity"), SHAPES[request.param]
    plugin = load_plugin(family)
    config = plugin.config_class.model_validate(options)
    torch.manual_seed(2)
    module = plugin.build(config)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    save_checkpoint(folder / "model", name=request.param, plugin_name=family, config=config, module=module)
    exported = export_checkpoint(load_checkpoint(folder / "model"), folder / "models")
    assert exported.folder is not None, exported.certificate
    runner = Runner.load(open_bundle(exported.folder), VARIANT, max_rows=len(LENGTHS), intra_op_threads=1)
    return Pair(module.eval().requires_grad_(False), RuntimeDecoder(runner))


@pytest.mark.parametrize("chunk", [1, 3, None])
def test_the_output_after_a_prompt_follows_from_its_last_items(pair: Pair, chunk: int | None) -> None:
    """Ragged prompts, shorter and longer than the window, item by item, in chunks and whole, within 1e-5."""
    prompts = pair.prompts()

    outputs = pair.decoder.prefill(prompts, [GREEDY] * len(prompts), chunk).outputs

    for prompt, row in zip(prompts, outputs, strict=True):
        for position, output in row.items():
            np.testing.assert_allclose(output, pair.defined_output(prompt[: position + 1]), atol=1e-5)


def test_what_is_fed_back_follows_item_by_item(pair: Pair) -> None:
    """Greedy tokens are equal and vectors within 1e-4, many steps in one run."""
    prompts = pair.prompts()
    made, _ = pair.decoder.generate(prompts, [GREEDY] * len(prompts), 24, steps_per_run=(9, 2))

    for prompt, items in zip(prompts, made, strict=True):
        line = prompt
        for item in items:
            output = pair.defined_output(line)
            expected = output.argmax() if line.ndim == 1 else output
            np.testing.assert_allclose(item, expected, atol=1e-4)
            line = np.concatenate([line, item[None]])
