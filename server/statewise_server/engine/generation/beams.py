"""The rows of a beam search: each is a sequence of the scheduler's, and all belong to one request."""

from __future__ import annotations

from dataclasses import dataclass, field

from tokenizers import Tokenizer

from statewise.errors import DataLossError
from statewise.rules.text import TextStream
from statewise_server.engine.generation.beam_search import BeamSearch, Branch, Candidate
from statewise_server.engine.generation.sequence import Sequence
from statewise_server.engine.request import Delta, Stream
from statewise_server.runtime.steps.runner import StepResult


@dataclass(slots=True)
class Moves:
    """Row operations that follow from a step of the search."""

    copies: list[tuple[Beam, Beam]] = field(default_factory=list)
    """From a row that stays as it is, into one that nobody needs, or that is new."""
    dropped: list[Beam] = field(default_factory=list)
    """Rows that are no longer needed."""


class BeamGroup:
    """The beams of one request; they take a step together."""

    def __init__(self, stream: Stream, tokenizer: Tokenizer | None) -> None:
        request = stream.request
        assert request.beam_search is not None
        self.num_beams = request.beam_search.num_beams
        self._tokenizer = tokenizer
        self._search = BeamSearch(request.beam_search, request.max_tokens, request.end_tokens)
        self.num_candidates = self._search.num_candidates
        self.beams = [Beam(self, stream)]
        """One for each branch of the search, in its order. The first one reads the prompt."""
        self.moves = Moves()
        """Not done yet."""
        self._reports: dict[Beam, list[Candidate]] = {}

    def report(self, beam: Beam, candidates: list[Candidate]) -> Delta:
        """Take what a run gave one beam; with the last one's the search moves on."""
        self._reports[beam] = candidates
        if len(self._reports) < len(self.beams):
            return Delta()
        self._search.advance([self._reports[member] for member in self.beams])
        self._reports.clear()
        if not self._search.branches:
            return self._result()
        self._follow(self._search.branches)
        return Delta()

    def _follow(self, branches: list[Branch]) -> None:
        """Give each branch a beam: its parent's where that is not taken yet, else one whose own branch has ended."""
        parents = {branch.parent for branch in branches}
        idle = [beam for place, beam in enumerate(self.beams) if place not in parents]
        beams: list[Beam] = []
        for branch in branches:
            beam = parent = self.beams[branch.parent]
            if parent in beams:
                beam = idle.pop() if idle else parent.sibling()
                self.moves.copies.append((parent, beam))
            beam.num_output, beam.last_item = len(branch.tokens), branch.tokens[-1]
            beams.append(beam)
        self.beams, self.moves.dropped = beams, idle

    def _result(self) -> Delta:
        hypotheses = self._search.hypotheses
        if self._tokenizer is not None:
            for hypothesis in hypotheses:
                text = TextStream(self._tokenizer, ())
                hypothesis.text = text.feed(hypothesis.tokens) + text.flush()
        best = hypotheses[0]
        return Delta(list(best.tokens), best.text, finish_reason=best.finish_reason, hypotheses=hypotheses)


class Beam(Sequence):
    """One row of a beam search."""

    def __init__(self, group: BeamGroup, stream: Stream) -> None:
        super().__init__(stream, None)
        self.group = group

    def sibling(self) -> Beam:
        """A beam without a row, which has read what this one has read."""
        beam = Beam(self.group, self.stream)
        beam.num_prefilled, beam.num_source_left = self.num_prefilled, self.num_source_left
        return beam

    @property
    def members(self) -> tuple[Sequence, ...]:
        """Every beam of the search."""
        return tuple(self.group.beams)

    @property
    def num_rows(self) -> int:
        """The search's rows belong to it from its admission on; its first beam holds those that it does not use."""
        spare = self.group.num_beams - len(self.group.beams)
        return 1 + spare if self is self.group.beams[0] else 1

    @property
    def num_top(self) -> int:
        """Number of candidates that the search considers."""
        return self.group.num_candidates

    @property
    def is_stepwise(self) -> bool:
        """Every step chooses anew which beams go on."""
        return True

    def append(self, result: StepResult, row: int) -> Delta:
        """Take a run's result for this beam; the last beam of a step returns the search's events, if any."""
        if not result.is_finite(row):
            return Delta(error=DataLossError("the model's output is not finite (NaN or infinity) for this request"))
        assert result.top_tokens is not None
        assert result.top_log_probabilities is not None
        top = slice(0, self.num_top)
        tokens, log_probabilities = result.top_tokens[0, row, top], result.top_log_probabilities[0, row, top]
        return self.group.report(self, list(map(Candidate, tokens.tolist(), log_probabilities.tolist())))

    def take_moves(self) -> Moves:
        """Take the row operations that are due before the next step."""
        moves, self.group.moves = self.group.moves, Moves()
        return moves


def sequence_of(stream: Stream, tokenizer: Tokenizer | None) -> Sequence:
    """Return a request's first sequence: its only one, or the first beam of its search."""
    if stream.request.beam_search is None:
        return Sequence(stream, tokenizer)
    return BeamGroup(stream, tokenizer).beams[0]
