"""What becomes of a module's nodes between PyTorch and the graphs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from statewise.model.spec import ModelSpec, RealInput, ValueHead
from statewise_export.trace.trace import trace_prediction


class EndsInReshape(nn.Module):
    """Its answer is a Reshape that undoes the one before it: both are its own."""

    def forward(self, items: Tensor, lengths: Tensor, state: tuple[()]) -> Any:
        return items[:, 0].unflatten(1, (2, 3)), ()

    def head(self, hidden: Tensor) -> Tensor:
        return hidden.flatten(1)


def test_an_output_that_only_reshapes_is_kept() -> None:
    """Reshapes that undo each other are left out, but the name of the output stays that of some node's."""
    spec = ModelSpec(input=RealInput(features=6), head=ValueHead(features=6), max_positions=9)

    traced = trace_prediction(EndsInReshape(), spec)

    assert traced.output in {name for node in traced.nodes for name in node.output}


def test_nodes_carry_no_path_of_the_machine_that_exports() -> None:
    """Torch notes each node's source lines, by absolute paths; a bundle has none of them."""
    traced = trace_prediction(
        EndsInReshape(), ModelSpec(input=RealInput(features=6), head=ValueHead(features=6), max_positions=9)
    )

    assert all(b".py" not in node.SerializeToString() for node in traced.nodes)
