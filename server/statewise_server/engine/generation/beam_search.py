"""Beam search: which beginnings of an answer are followed, and which whole answers are the best so far.

The rules are those of `transformers` 5 (`generate(num_beams=n, do_sample=False)`), without its logits processors.
Of the 2n most probable continuations (with e > 1 end tokens (1 + e) n), those among the first n that end are whole
answers, and the first n of those that do not are followed. An answer's score is its log-probability / length ^
length_penalty, its length being its own tokens, the end token included. At equal scores, what came first stays first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from statewise_server.engine.request import BeamParams, FinishReason, Hypothesis


class Candidate(NamedTuple):
    """One more token for a branch."""

    token: int
    log_probability: float
    """Log-probability of the token after the branch, in nats."""


@dataclass(frozen=True, slots=True)
class Branch:
    """The beginning of an answer."""

    tokens: tuple[int, ...] = ()
    log_probability: float = 0.0
    parent: int = 0
    """Place of the branch that this one continues, among those before it."""

    def grown(self, candidate: Candidate, parent: int) -> Branch:
        """The branch with one token more."""
        return Branch((*self.tokens, candidate.token), self.log_probability + candidate.log_probability, parent)


class BeamSearch:
    """A search for the most probable answers to one prompt."""

    def __init__(self, params: BeamParams, max_tokens: int, end_tokens: frozenset[int]) -> None:
        self.branches: list[Branch] = [Branch()]
        """Branches that the search follows, most probable first; none when the search is over."""
        self._found: list[Hypothesis] = []
        self._params = params
        self._max_tokens = max_tokens
        self._end_tokens = end_tokens

    @property
    def num_candidates(self) -> int:
        """Continuations that are looked through: each beam may end in every way, and n are to go on."""
        return (1 + max(1, len(self._end_tokens))) * self._params.num_beams

    @property
    def hypotheses(self) -> list[Hypothesis]:
        """The best whole answers so far; fewer than were asked for where the vocabulary has no more."""
        return self._found[: self._params.num_hypotheses]

    def advance(self, candidates: Sequence[Sequence[Candidate]]) -> None:
        """Grow every branch by one token, given the `num_candidates` most probable ones after each branch."""
        num_beams, following = self._params.num_beams, []
        for place, branch in enumerate(self._most_probable(candidates)):
            if not self._ends(branch):
                following.append(branch)
            elif place < num_beams:
                self._add(branch)
        self.branches = [] if self._is_over(following) else following[:num_beams]

    def _most_probable(self, candidates: Sequence[Sequence[Candidate]]) -> list[Branch]:
        pairs = enumerate(zip(self.branches, candidates, strict=True))
        grown = [branch.grown(candidate, parent) for parent, (branch, own) in pairs for candidate in own]
        return sorted(grown, key=lambda branch: -branch.log_probability)[: self.num_candidates]

    def _ends(self, branch: Branch) -> bool:
        return len(branch.tokens) == self._max_tokens or branch.tokens[-1] in self._end_tokens

    def _add(self, branch: Branch) -> None:
        reason: FinishReason = "stop" if branch.tokens[-1] in self._end_tokens else "length"
        self._found.append(Hypothesis(list(branch.tokens), branch.log_probability, self._score(branch), reason))
        self._found.sort(key=lambda hypothesis: -hypothesis.score)
        del self._found[self._params.num_beams :]

    def _score(self, branch: Branch) -> float:
        return branch.log_probability / math.pow(len(branch.tokens), self._params.length_penalty)

    def _is_over(self, following: Sequence[Branch]) -> bool:
        if not following:
            return True
        if len(self._found) < self._params.num_beams:
            return False
        # The best branch's score if it ended here; a longer one may still score more, but is not waited for.
        return self._params.early_stopping or self._score(following[0]) <= self._found[-1].score
