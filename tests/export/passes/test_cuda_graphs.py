"""Steps that can be captured as CUDA graphs, as far as their operators tell."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from onnx import helper

from statewise.plugins import load_plugin
from statewise_export.passes.variants import VARIANTS
from statewise_export.trace.trace import TracedStep, trace_step
from statewise_training.families.shared.lowering import attention_lowering
from tests.export.passes.residency import crossings

FLOAT16, FLOAT32 = "cuda-float16", "cuda-float32"

CONTROL_FLOW = {"If", "Loop", "Scan"}

# Their outputs' shapes depend on values, or (GatherND, ScatterND) they copy sizes from memory of the moment.
NOT_REPLAYED = {"Compress", "GatherND", "NonZero", "NonMaxSuppression", "ScatterND", "Unique"}

SMALL = {"vocabulary_size": 40, "hidden_size": 32, "num_layers": 1, "num_heads": 4, "max_positions": 32}
TOKENS = {"plugin": "transformer"} | SMALL
PAIRS = {"plugin": "transformer_encoder_decoder", "source_vocabulary_size": 40, "max_source_positions": 12} | SMALL
CONFIGS: dict[str, dict[str, Any]] = {
    "rotary": TOKENS | {"positions": "rotary", "norm": "rms_norm", "activation": "swiglu"},
    "sinusoidal": TOKENS | {"positions": "sinusoidal", "scaled_embeddings": True, "norm_position": "post"},
    "learned": TOKENS | {"positions": "learned", "num_key_value_heads": 1, "embedding_norm": True},
    "pairs": PAIRS | {"num_key_value_heads": 2},
}


def lowered(name: str, variant: str) -> TracedStep:
    """The step of a model, as it goes into a variant's graph."""
    options = dict(CONFIGS[name])
    plugin = load_plugin(options.pop("plugin"))
    config = plugin.config_class.model_validate(options)
    torch.manual_seed(0)
    plan = VARIANTS[variant]
    with attention_lowering(plan.attention):
        return plan.lower(trace_step(plugin.build(config), plugin.spec(config)))


@pytest.mark.parametrize(
    ("name", "variant"),
    [("rotary", FLOAT16), ("sinusoidal", FLOAT32), ("learned", FLOAT16), ("pairs", FLOAT16), ("pairs", FLOAT32)],
)
def test_a_transformers_step_can_be_captured(name: str, variant: str) -> None:
    """It has no control flow, no shape that depends on values, and nothing that goes from host to device or back."""
    step = lowered(name, variant)

    assert not (CONTROL_FLOW | NOT_REPLAYED) & {node.op_type for node in step.nodes}
    assert crossings(step.nodes, step.weights) == []


def test_crossings_are_found() -> None:
    """A length that the device counts and the host reads is seen, as is a size of the host's beside numbers."""
    nodes = [
        helper.make_node("ReduceMax", ["lengths"], ["longest"], keepdims=0),
        helper.make_node("GroupQueryAttention", ["q", "k", "v", "past", "past", "lengths", "longest"], ["attended"]),
        helper.make_node("Shape", ["items"], ["shape"]),
        helper.make_node("Mul", ["shape", "two"], ["larger"]),
        helper.make_node("Reshape", ["attended", "larger"], ["reshaped"]),
        helper.make_node("Add", ["position", "larger"], ["end"]),
    ]

    found = crossings(nodes, ["two"])

    assert [text.partition("(")[0] for text in found] == ["GroupQueryAttention", "Add"]
