"""The parity certificate: a variant, run by the server's runtime, against the PyTorch reference.

A variant of lower precision is held against itself instead, and its divergence from PyTorch is measured and bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statewise.bundles.certificate import Case, Certificate, Limits, OutputAgreement, TokenAgreement, Tolerances
from statewise.bundles.reader import Bundle
from statewise.model.spec import MixtureHead, ModelSpec, TokenInput
from statewise.rules.mixture import in_other_units
from statewise.rules.sampling import GREEDY, SamplingParams
from statewise_export.certify import drawn_vectors
from statewise_export.certify.certify_sequences import certify_sequences, certify_without_steps
from statewise_export.certify.divergence import measure_divergence
from statewise_export.certify.driver import RuntimeDecoder
from statewise_export.certify.inputs import DATA_SEED, Prompts, Scale, held_out_rows, random_items, random_sources
from statewise_export.certify.invariance import MIXED_CHUNK, agrees_in_batch, is_batch_invariant
from statewise_export.certify.self_reference import SelfReference
from statewise_export.certify.subject import subject_of
from statewise_export.certify.token_agreement import NUM_GENERATED, add, compare_tokens
from statewise_export.certify.tolerances import against_itself, against_pytorch, agree
from statewise_server.runtime.steps.runner import Runner
from statewise_training.checkpoints.held_out import Pair
from statewise_training.reference.decoding import ReferenceDecoder

Array = NDArray[Any]
Progress = Callable[[str], None]
Reference = ReferenceDecoder | SelfReference

PROMPT_LENGTHS = (1, 2, 7, 63, 64, 65, 130)
"""One item, two, an odd number, around a prefill chunk, and more than two of them."""
MAX_NEAR_LIMIT = 2047
"""A model of more positions is not filled: it would take too long, and show nothing new."""
SOURCE_LENGTHS = (33, 16, 17, 15, MAX_NEAR_LIMIT, 7, 1)
"""One for each prompt: one item, odd numbers, both sides of a bucket's end, and as many as the model reads."""
BATCH_SIZES = (1, 2, 7, 16)
CHUNKS = (None, 1, 16, 64)
NUM_REAL_GENERATED = 32
"""Real vectors fed back let rounding grow, so that a long run says little."""
STEPS_PER_RUN = (1, 5, 16, 2)
SAMPLED = (
    SamplingParams(seed=1),
    SamplingParams(seed=2, temperature=0.8, top_k=20),
    SamplingParams(seed=3, temperature=1.3, top_p=0.9),
    SamplingParams(seed=4, temperature=0.7, min_p=0.05),
    SamplingParams(seed=5, temperature=1.5, top_k=50, top_p=0.95, min_p=0.02),
    SamplingParams(seed=2**63 + 6, top_p=0.5, logit_bias={0: -100.0, 1: 2.5}),
    SamplingParams(seed=7, temperature=0.0, logit_bias={1: -5.0}),
)
PENALIZED = (
    SamplingParams(seed=8, repetition_penalty=1.3),
    SamplingParams(seed=9, temperature=0.9, presence_penalty=0.6, frequency_penalty=0.3),
    SamplingParams(seed=10, temperature=0.0, repetition_penalty=1.1, frequency_penalty=1.0, logit_bias={1: 3.0}),
)
"""Apart from the others: penalties need each token before the next, so that one run makes one."""


_SAMPLED = {"categorical": SAMPLED, "mixture": drawn_vectors.SAMPLED, "value": (GREEDY,)}


@dataclass
class _Findings:
    tolerances: Tolerances
    units: NDArray[np.float64]
    """What errors of each number of an output are measured in."""
    cases: list[Case] = field(default_factory=list)
    max_absolute_error: float = 0.0
    max_relative_error: float = 0.0
    positions: int = 0
    batch_invariant: bool = True
    chunk_invariant: bool = True
    greedy: TokenAgreement | None = None
    sampled: TokenAgreement | None = None
    vectors: TokenAgreement | None = None

    @property
    def passed(self) -> bool:
        tokens = [agreement for agreement in (self.greedy, self.sampled, self.vectors) if agreement is not None]
        return (
            all(case.passed for case in self.cases)
            and self.batch_invariant
            and self.chunk_invariant
            and all(t.equal + t.near_ties == t.compared for t in tokens)
        )


def certify(
    bundle: Bundle,
    variant_name: str,
    reference: ReferenceDecoder,
    scale: Scale,
    progress: Progress = lambda _: None,
    *,
    limits: Limits | None = None,
    held_out: Array | list[Pair] | None = None,
    device: str | None = None,
) -> Certificate:
    """Run every comparison; the certificate says whether all of them passed.

    With `limits` the variant is held against itself, and its divergence from the reference against the limits; that is
    measured on `held_out` items, `[time]` or `[time, features]`, or pairs of source and target, or on what the
    reference samples.
    `device`: where to run the variant instead of its own device, as tests do that have none.
    """
    spec = bundle.manifest.model
    sequence = held_out if isinstance(held_out, np.ndarray) else None
    if not spec.generates:
        return certify_without_steps(
            bundle, variant_name, reference, scale, progress, limits=limits, held_out=sequence, device=device
        )
    decoder = RuntimeDecoder(Runner.load(bundle, variant_name, max_rows=max(BATCH_SIZES), device=device))
    if limits is None:
        tolerances = against_pytorch(spec, bundle.variant(variant_name))
        found = _compare(decoder, reference, tolerances, scale, progress)
        itself, divergence = None, None
    else:
        itself = SelfReference(decoder)
        prompts = _prompts(spec, scale)
        outputs = np.concatenate(itself.outputs(prompts.items, prompts.sources)) / _units(spec, scale)
        found = _compare(decoder, itself, against_itself(outputs), scale, progress)
        progress("divergence from float32")
        rows = held_out_rows(held_out, reference, scale, bundle.manifest.special_tokens.start)
        divergence = measure_divergence(decoder, reference, rows, scale)
    sequences = certify_sequences(
        bundle, variant_name, reference, scale, progress, itself=itself, limits=limits, held_out=sequence, device=device
    )
    is_close = divergence is None or limits is None or divergence.within(limits)
    return Certificate(
        **subject_of(bundle, variant_name, limits),
        passed=found.passed and is_close and all(graph.passes(limits) for graph in sequences),
        tolerances=found.tolerances,
        outputs=OutputAgreement(
            max_absolute_error=found.max_absolute_error,
            max_relative_error=found.max_relative_error,
            positions_compared=found.positions,
        ),
        greedy_tokens=found.greedy,
        sampled_tokens=found.sampled,
        sampled_vectors=found.vectors,
        batch_invariant=found.batch_invariant,
        chunk_invariant=found.chunk_invariant,
        sequences=tuple(graph.agreement() for graph in sequences),
        divergence=divergence,
        cases=(*found.cases, *(case for graph in sequences for case in graph.cases)),
        seeds=(DATA_SEED, *(p.seed or 0 for p in (*SAMPLED, *PENALIZED))),
    )


def _compare(
    decoder: RuntimeDecoder, reference: Reference, tolerances: Tolerances, scale: Scale, progress: Progress
) -> _Findings:
    """Hold outputs and tokens against a reference, and rows in a batch against rows alone."""
    spec = reference.spec
    limit = spec.max_positions or max(PROMPT_LENGTHS) + NUM_GENERATED
    prompts = _prompts(spec, scale)
    found = _Findings(tolerances, _units(spec, scale))
    progress("outputs at every position")
    _compare_outputs(decoder, reference, prompts, found)
    if spec.max_positions is not None:
        longest = random_items(spec, (min(spec.max_positions - 1, MAX_NEAR_LIMIT),), scale)
        _compare_near_limit(decoder, reference, Prompts(longest, random_sources(spec, (MAX_NEAR_LIMIT,))), found)
    if decoder.runner.can_mix:
        _compare_mixed(decoder, reference, prompts, found)
    progress("batch invariance")
    if tolerances.batch == "within":
        found.batch_invariant = agrees_in_batch(decoder, prompts, tolerances)
    else:
        settings = _SAMPLED[spec.head.kind]
        params = [settings[row % len(settings)] for row in range(len(prompts))]
        num_items = min(24, limit - max(map(len, prompts.items)))
        found.batch_invariant = is_batch_invariant(decoder, prompts, params, num_items, STEPS_PER_RUN)
    if isinstance(spec.input, TokenInput):
        progress("greedy tokens")
        greedy = [GREEDY] * len(prompts)
        found.greedy = compare_tokens(decoder, reference, prompts, greedy, limit, STEPS_PER_RUN, tolerances)
        progress("sampled tokens")
        found.sampled = add(
            compare_tokens(decoder, reference, prompts, SAMPLED, limit, STEPS_PER_RUN, tolerances),
            compare_tokens(
                decoder, reference, prompts.take(range(len(prompts))[-3:]), PENALIZED, limit, (1,), tolerances
            ),
        )
    elif isinstance(spec.head, MixtureHead):
        progress("sampled vectors")
        count = min(drawn_vectors.NUM_DRAWN, limit - max(map(len, prompts.items)))
        deviation = np.broadcast_to(np.asarray(scale.deviation, np.float64), spec.head.features)
        found.vectors = drawn_vectors.compare_drawn(
            decoder, reference, prompts, count, STEPS_PER_RUN, tolerances, deviation
        )
    else:
        progress("values fed back")
        _compare_fed_back(decoder, reference, prompts, limit, found)
    return found


def _units(spec: ModelSpec, scale: Scale) -> NDArray[np.float64]:
    """What each number of an output is divided by before it is compared: deviations, so that 1 is much of anything."""
    if isinstance(spec.input, TokenInput):
        return np.ones(1)
    return in_other_units(spec.head, 0.0, scale.deviation)[0]


def _prompts(spec: ModelSpec, scale: Scale) -> Prompts:
    # Half of a bounded model's positions are left for what is generated.
    longest = (spec.max_positions or 2 * max(PROMPT_LENGTHS)) // 2
    lengths = [min(length, longest) for length in PROMPT_LENGTHS]
    if spec.source is None:
        return Prompts(random_items(spec, sorted(set(lengths)), scale))
    return Prompts(random_items(spec, lengths, scale), random_sources(spec, SOURCE_LENGTHS))


def _batches(num_prompts: int) -> Iterator[list[int]]:
    """Ragged batches of every size, each with the longest prompt; and every prompt alone. By their numbers."""
    yield from ([prompt] for prompt in range(num_prompts))
    for size in BATCH_SIZES[1:]:
        yield [num_prompts - 1 - index % num_prompts for index in range(size)]


def _compare_outputs(decoder: RuntimeDecoder, reference: Reference, prompts: Prompts, found: _Findings) -> None:
    expected = reference.outputs(prompts.items, prompts.sources)
    for rows in _batches(len(prompts)):
        for chunk in CHUNKS:
            _compare_batch(decoder, prompts.take(rows), chunk, [expected[row] for row in rows], found)


def _compare_near_limit(decoder: RuntimeDecoder, reference: Reference, prompts: Prompts, found: _Findings) -> None:
    """A prompt that all but fills a bounded state, whole and in chunks, behind the longest source."""
    expected = reference.outputs(prompts.items, prompts.sources)
    for chunk in (None, 64):
        _compare_batch(decoder, prompts, chunk, expected, found)


def _compare_batch(
    decoder: RuntimeDecoder, batch: Prompts, chunk: int | None, expected: Sequence[Array], found: _Findings
) -> None:
    """Compare the outputs that a batch gives with those expected of each row."""
    outputs = decoder.prefill(batch.items, [GREEDY] * len(batch), chunk, batch.sources).outputs
    passed = _record(found, _pairs(outputs, expected), batch, chunk)
    if chunk is not None:
        found.chunk_invariant &= passed


def _compare_mixed(decoder: RuntimeDecoder, reference: Reference, prompts: Prompts, found: _Findings) -> None:
    """Rows that decode while a prompt is read, and that prompt; the reference reads the items that those rows chose."""
    prompts = prompts.take([0, 0]) if len(prompts) == 1 else prompts
    items, _, outputs = decoder.generate_beside(prompts.items, [GREEDY] * len(prompts), MIXED_CHUNK, prompts.sources)
    read = [np.concatenate([prompt, own[:-1]]) for prompt, own in zip(prompts.items, items, strict=True)]
    if isinstance(reference.spec.input, TokenInput):
        read = [row.clip(0) for row in read]  # -1 stands for outputs that are not finite, and an embedding has no -1
    _record(found, _pairs(outputs, reference.outputs(read, prompts.sources)), prompts, MIXED_CHUNK, mixed=True)


def _pairs(outputs: Sequence[dict[int, Array]], expected: Sequence[Array]) -> list[tuple[Array, Array]]:
    """The outputs of every row at some positions, each with the one expected there."""
    rows = zip(outputs, expected, strict=True)
    return [(output, row[position]) for at, row in rows for position, output in at.items()]


def _record(
    found: _Findings, pairs: list[tuple[Array, Array]], batch: Prompts, chunk: int | None, *, mixed: bool = False
) -> bool:
    """Compare pairs of actual and expected outputs, and add them as a case; returns whether it passed."""
    actual = np.concatenate([np.atleast_2d(a) for a, _ in pairs]) / found.units
    expected = np.concatenate([np.atleast_2d(e) for _, e in pairs]) / found.units
    error = np.abs(actual.astype(np.float64) - expected)
    passed = agree(actual, expected, found.tolerances)
    relative = error / np.maximum(np.abs(expected), 1.0)
    # NumPy's maximum keeps a NaN, Python's max would lose it.
    found.max_absolute_error = float(np.maximum(found.max_absolute_error, error.max()))
    found.max_relative_error = float(np.maximum(found.max_relative_error, relative.max()))
    found.positions += len(actual)
    found.cases.append(
        Case(
            prompt_length=max(map(len, batch.items)),
            source_length=max(map(len, batch.sources)) if batch.sources else None,
            batch_size=len(batch),
            chunk=chunk,
            mixed=mixed,
            max_absolute_error=float(error.max()),
            passed=passed,
        )
    )
    return passed


def _compare_fed_back(
    decoder: RuntimeDecoder, reference: Reference, prompts: Prompts, limit: int, found: _Findings
) -> None:
    params, count = [GREEDY] * len(prompts), min(NUM_REAL_GENERATED, limit - max(map(len, prompts.items)))
    actual, _ = decoder.generate(prompts.items, params, count, prompts.sources, chunk=16, steps_per_run=STEPS_PER_RUN)
    expected, _ = reference.generate(prompts.items, params, count, prompts.sources)
    _record(found, list(zip(actual, expected, strict=True)), prompts, 16)
