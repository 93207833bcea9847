"""Nodes that choose the next item of each row from the head's output, for each kind of head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from statewise.model.spec import CategoricalHead, HeadSpec, MixtureHead
from statewise_export.builder import GraphBuilder
from statewise_export.choosing.mixture import add_mixture_sampler
from statewise_export.choosing.sampler import add_sampler


class Choice(Protocol):
    """The choice of one kind of head; inputs and results are those of `statewise.model.graph_io`."""

    def add(self, op: GraphBuilder, output: str, noise: str) -> Sequence[str]:
        """Nodes from outputs `[row, output_size]` and the noise of one step to the results, the items first."""

    def fed_back(self, op: GraphBuilder, item: str) -> str:
        """The value that the next step reads for an item."""


class TokenChoice:
    """Tokens, by the rules of statewise.rules.sampling."""

    def __init__(self, head: CategoricalHead) -> None:
        self._size = head.vocabulary_size

    def add(self, op: GraphBuilder, output: str, noise: str) -> Sequence[str]:
        """Add the sampler."""
        return add_sampler(op, output, noise, self._size)

    def fed_back(self, op: GraphBuilder, item: str) -> str:
        """Token 0 for a row that is not finite: the embedding must not be asked for token -1."""
        return op.Max(item, op.constant(0))


class MixtureChoice:
    """Vectors drawn from a mixture, by the rules of statewise.rules.mixture."""

    def __init__(self, head: MixtureHead) -> None:
        self._head = head

    def add(self, op: GraphBuilder, output: str, noise: str) -> Sequence[str]:
        """Add the draw."""
        return add_mixture_sampler(op, output, noise, self._head)

    def fed_back(self, op: GraphBuilder, item: str) -> str:
        """The vector itself."""
        return item


class ValueChoice:
    """The output itself, a vector."""

    def add(self, op: GraphBuilder, output: str, noise: str) -> Sequence[str]:
        """Add nothing."""
        return [output]

    def fed_back(self, op: GraphBuilder, item: str) -> str:
        """The vector itself."""
        return item


def choice_of(head: HeadSpec) -> Choice:
    """The choice of a model that generates, by its head."""
    if isinstance(head, CategoricalHead):
        return TokenChoice(head)
    return MixtureChoice(head) if isinstance(head, MixtureHead) else ValueChoice()
