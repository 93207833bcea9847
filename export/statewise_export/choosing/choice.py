"""How a graph makes the next item of each row of the head's output: what it reads for it, and what it gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import onnx

from statewise.model.spec import CategoricalHead, MixtureHead, ModelSpec
from statewise_export.choosing import mixture, sampler
from statewise_export.trace.builder import GraphBuilder, tensor_info


class Choice(ABC):
    """The choice of one kind of head; the first of its results is the item."""

    results: tuple[str, ...] = ("next_items",)
    """Names as the runtime asks for them."""
    noise: str | None = None
    """The input that holds what the draw needs, `[row, step, ...]`."""

    def inputs(self, row: str) -> list[onnx.ValueInfoProto]:
        """The inputs beside the model's own; `row` names their first dimension."""
        return []

    @abstractmethod
    def infos(self, names: Sequence[str], leading: Sequence[str]) -> list[onnx.ValueInfoProto]:
        """The results, under these names, with these dimensions before their own."""

    @abstractmethod
    def add(self, op: GraphBuilder, output: str, noise: str) -> Sequence[str]:
        """Nodes from outputs `[row, output_size]` and the noise of one step to the results."""

    def fed_back(self, op: GraphBuilder, item: str) -> str:
        """What the next step reads for an item."""
        return item


class TokenChoice(Choice):
    """Tokens, by the rules of statewise.rules.sampling."""

    results = ("next_items", "log_probability", "top_tokens", "top_log_probabilities")
    noise = "sampling.uniforms"

    def __init__(self, head: CategoricalHead) -> None:
        self._size = head.vocabulary_size

    def inputs(self, row: str) -> list[onnx.ValueInfoProto]:
        """The sampling parameters of each row, its adjustments and its uniform numbers."""
        names = sampler.INPUTS
        return [
            tensor_info(names.parameters, "float32", [row, 6]),
            tensor_info(names.top_k, "int64", [row]),
            tensor_info(names.adjust_ids, "int64", [row, "entry"]),
            tensor_info(names.adjust_values, "float32", [row, "entry", 3]),
            tensor_info(names.num_top, "int64", []),
            tensor_info(self.noise, "float32", [row, "step"]),
        ]

    def infos(self, names: Sequence[str], leading: Sequence[str]) -> list[onnx.ValueInfoProto]:
        """Token, its log-probability, the most probable tokens and theirs."""
        token, log_probability, top_tokens, top_log_probabilities = names
        return [
            tensor_info(token, "int64", leading),
            tensor_info(log_probability, "float32", leading),
            tensor_info(top_tokens, "int64", [*leading, "top"]),
            tensor_info(top_log_probabilities, "float32", [*leading, "top"]),
        ]

    def add(self, op: GraphBuilder, output: str, noise: str) -> Sequence[str]:
        """The sampler."""
        return sampler.add_sampler(op, output, noise, self._size)

    def fed_back(self, op: GraphBuilder, item: str) -> str:
        """Token 0 for a row that is not finite: the embedding must not be asked for token -1."""
        return op.Max(item, op.constant(0))


class MixtureChoice(Choice):
    """Vectors that are drawn, by the rules of statewise.rules.mixture."""

    results = ("next_items", "log_probability")
    noise = mixture.INPUTS.noise

    def __init__(self, head: MixtureHead) -> None:
        self._head = head

    def inputs(self, row: str) -> list[onnx.ValueInfoProto]:
        """Temperature and noise of each row, and whether a log-density is wanted."""
        names = mixture.INPUTS
        return [
            tensor_info(names.temperature, "float32", [row]),
            tensor_info(names.noise, "float32", [row, "step", 1 + self._head.features]),
            tensor_info(names.num_top, "int64", []),
        ]

    def infos(self, names: Sequence[str], leading: Sequence[str]) -> list[onnx.ValueInfoProto]:
        """Vector and log-density."""
        item, log_density = names
        features = self._head.features
        return [tensor_info(item, "float32", [*leading, features]), tensor_info(log_density, "float32", leading)]

    def add(self, op: GraphBuilder, output: str, noise: str) -> Sequence[str]:
        """The draw."""
        return mixture.add_mixture_sampler(op, output, noise, self._head)


class ValueChoice(Choice):
    """The output itself."""

    def __init__(self, features: int) -> None:
        self._features = features

    def infos(self, names: Sequence[str], leading: Sequence[str]) -> list[onnx.ValueInfoProto]:
        """The vector."""
        return [tensor_info(names[0], "float32", [*leading, self._features])]

    def add(self, op: GraphBuilder, output: str, noise: str) -> Sequence[str]:
        """Nothing."""
        return [output]


def choice_of(spec: ModelSpec) -> Choice:
    """The choice of a model that generates."""
    if isinstance(spec.head, CategoricalHead):
        return TokenChoice(spec.head)
    return MixtureChoice(spec.head) if isinstance(spec.head, MixtureHead) else ValueChoice(spec.head.output_size)
