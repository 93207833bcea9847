"""The parity certificate: the bundle, run by the server's runtime, against the PyTorch reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from export.driver import RuntimeDecoder
from export.near_ties import is_near_tie
from export.tolerances import against_pytorch
from server.runtime.runner import Runner
from statewise.bundle import Bundle
from statewise.certificate import Case, Certificate, OutputAgreement, TokenAgreement, Tolerances
from statewise.manifest import ModelSpec, TokenInput
from statewise.sampling import GREEDY, SamplingParams
from statewise.versions import installed_versions
from training.decoding import ReferenceDecoder

Array = NDArray[Any]
Progress = Callable[[str], None]

PROMPT_LENGTHS = (1, 2, 7, 63, 64, 65, 130)
"""One item, two, an odd number, around a prefill chunk, and more than two of them."""
MAX_NEAR_LIMIT = 2047
"""A model of more positions is not filled: it would take too long, and show nothing new."""
BATCH_SIZES = (1, 2, 7, 16)
CHUNKS = (None, 1, 16, 64)
NUM_GENERATED = 200
NUM_REAL_GENERATED = 32
"""Real vectors fed back let rounding grow, so that a long run says little."""
STEPS_PER_RUN = (1, 5, 16, 2)
DATA_SEED = 20_111
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


@dataclass(frozen=True)
class Scale:
    """Mean and deviation of the vectors that a model reads, one number per feature or one for all."""

    mean: ArrayLike = 0.0
    deviation: ArrayLike = 1.0


@dataclass
class _Findings:
    tolerances: Tolerances
    cases: list[Case] = field(default_factory=list)
    max_absolute_error: float = 0.0
    max_relative_error: float = 0.0
    positions: int = 0
    batch_invariant: bool = True
    chunk_invariant: bool = True


def certify(
    bundle: Bundle,
    variant_name: str,
    reference: ReferenceDecoder,
    scale: Scale = Scale(),
    progress: Progress = lambda _: None,
    *,
    device: str | None = None,
) -> Certificate:
    """Run every comparison; the certificate says whether all of them passed.

    `device`: where to run the variant instead of its own device, as tests do that have none.
    """
    spec = bundle.manifest.model
    limit = spec.max_positions or max(PROMPT_LENGTHS) + NUM_GENERATED
    runner = Runner.load(bundle, variant_name, max_rows=max(BATCH_SIZES), device=device)
    decoder = RuntimeDecoder(runner)
    # Half of a bounded model's positions are left for what is generated.
    prompts = _prompts(spec, sorted({min(length, limit // 2) for length in PROMPT_LENGTHS}), scale)
    found = _Findings(against_pytorch(spec, bundle.variant(variant_name)))
    progress("outputs at every position")
    _compare_outputs(decoder, reference, prompts, found)
    if spec.max_positions is not None:
        (prompt,) = _prompts(spec, (min(spec.max_positions - 1, MAX_NEAR_LIMIT),), scale)
        _compare_near_limit(decoder, reference, prompt, found)
    progress("batch invariance")
    num_items = min(24, limit - max(map(len, prompts)))
    found.batch_invariant = _is_batch_invariant(decoder, prompts, num_items, found.tolerances)
    greedy = sampled = None
    if isinstance(spec.input, TokenInput):
        progress("greedy tokens")
        greedy = _compare_tokens(decoder, reference, prompts, [GREEDY] * len(prompts), limit, STEPS_PER_RUN, found)
        progress("sampled tokens")
        sampled = _add(
            _compare_tokens(decoder, reference, prompts, SAMPLED, limit, STEPS_PER_RUN, found),
            _compare_tokens(decoder, reference, prompts[-3:], PENALIZED, limit, (1,), found),
        )
    else:
        progress("values fed back")
        _compare_fed_back(decoder, reference, prompts, found)
    tokens_agree = all(t is None or t.equal + t.near_ties == t.compared for t in (greedy, sampled))
    return Certificate(
        model=bundle.manifest.name,
        version=bundle.manifest.version,
        variant=variant_name,
        passed=all(case.passed for case in found.cases)
        and found.batch_invariant
        and found.chunk_invariant
        and tokens_agree,
        tolerances=found.tolerances,
        outputs=OutputAgreement(
            max_absolute_error=found.max_absolute_error,
            max_relative_error=found.max_relative_error,
            positions_compared=found.positions,
        ),
        greedy_tokens=greedy,
        sampled_tokens=sampled,
        batch_invariant=found.batch_invariant,
        chunk_invariant=found.chunk_invariant,
        cases=tuple(found.cases),
        seeds=(DATA_SEED, *(p.seed or 0 for p in (*SAMPLED, *PENALIZED))),
        libraries=library_versions(),
        files=bundle.variant_files(variant_name),
        created=datetime.now(UTC),
    )


def library_versions() -> dict[str, str]:
    """Versions of the libraries that a bundle's numbers depend on."""
    return installed_versions(
        ("statewise", "torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "numpy", "tokenizers")
    )


def _prompts(spec: ModelSpec, lengths: Iterable[int], scale: Scale) -> list[Array]:
    rng = np.random.default_rng(DATA_SEED)
    if isinstance(spec.input, TokenInput):
        size = spec.input.vocabulary_size
        return [rng.integers(0, size, length) for length in lengths]
    features, mean, deviation = spec.input.features, np.asarray(scale.mean), np.asarray(scale.deviation)
    return [(mean + deviation * rng.standard_normal((length, features))).astype(np.float32) for length in lengths]


def _batches(prompts: list[Array]) -> Iterator[list[Array]]:
    """Ragged batches of every size, each with the longest prompt; and every prompt alone."""
    yield from ([prompt] for prompt in prompts)
    for size in BATCH_SIZES[1:]:
        yield [prompts[-1 - index % len(prompts)] for index in range(size)]


def _compare_outputs(
    decoder: RuntimeDecoder, reference: ReferenceDecoder, prompts: list[Array], found: _Findings
) -> None:
    expected = {len(row): row for row in reference.outputs(prompts)}
    for batch in _batches(prompts):
        for chunk in CHUNKS:
            _compare_batch(decoder, batch, chunk, expected, found)


def _compare_near_limit(decoder: RuntimeDecoder, reference: ReferenceDecoder, prompt: Array, found: _Findings) -> None:
    """A prompt that all but fills a bounded state, whole and in chunks."""
    expected = {len(prompt): reference.outputs([prompt])[0]}
    for chunk in (None, 64):
        _compare_batch(decoder, [prompt], chunk, expected, found)


def _compare_batch(
    decoder: RuntimeDecoder, batch: list[Array], chunk: int | None, expected: dict[int, Array], found: _Findings
) -> None:
    """Compare the outputs that a batch gives with those expected of each length."""
    outputs = decoder.prefill(batch, [GREEDY] * len(batch), chunk).outputs
    pairs = [
        (output, expected[len(prompt)][position])
        for prompt, row in zip(batch, outputs, strict=True)
        for position, output in row.items()
    ]
    passed = _record(found, pairs, batch, chunk)
    if chunk is not None:
        found.chunk_invariant &= passed


def _record(found: _Findings, pairs: list[tuple[Array, Array]], batch: list[Array], chunk: int | None) -> bool:
    """Compare pairs of actual and expected outputs, and add them as a case; returns whether it passed."""
    actual = np.concatenate([np.atleast_2d(a) for a, _ in pairs])
    expected = np.concatenate([np.atleast_2d(e) for _, e in pairs])
    error = np.abs(actual.astype(np.float64) - expected)
    passed = _agree(actual, expected, found.tolerances)
    relative = error / np.maximum(np.abs(expected), 1.0)
    # NumPy's maximum keeps a NaN, Python's max would lose it.
    found.max_absolute_error = float(np.maximum(found.max_absolute_error, error.max()))
    found.max_relative_error = float(np.maximum(found.max_relative_error, relative.max()))
    found.positions += len(actual)
    found.cases.append(
        Case(
            prompt_length=max(map(len, batch)),
            batch_size=len(batch),
            chunk=chunk,
            max_absolute_error=float(error.max()),
            passed=passed,
        )
    )
    return passed


def _agree(actual: Array, expected: Array, limits: Tolerances) -> bool:
    """Whether output vectors `[..., size]` are equal within the tolerances."""
    size = np.abs(expected)
    allowed = limits.absolute + limits.relative * size + limits.of_largest * size.max(axis=-1, keepdims=True)
    return bool((np.abs(actual.astype(np.float64) - expected) <= allowed).all())


def _is_batch_invariant(decoder: RuntimeDecoder, prompts: list[Array], count: int, limits: Tolerances) -> bool:
    """Whether rows alone give what they give together: outputs; bit for bit, items and log-probabilities as well."""
    is_tokens = isinstance(decoder.runner.spec.input, TokenInput)
    params = [SAMPLED[row % len(SAMPLED)] if is_tokens else GREEDY for row in range(len(prompts))]
    together = decoder.prefill(prompts, params, 16).outputs
    if limits.batch == "within":
        alone_rows = [decoder.prefill([prompt], [p], 16).outputs[0] for prompt, p in zip(prompts, params, strict=True)]
        pairs = zip(alone_rows, together, strict=True)
        return all(_agree(alone[at], row[at], limits) for alone, row in pairs for at in row)
    items, log_probabilities = decoder.generate(prompts, params, count, chunk=64, steps_per_run=STEPS_PER_RUN)
    for row, prompt in enumerate(prompts):
        (alone,) = decoder.prefill([prompt], [params[row]], 16).outputs
        same = all(np.array_equal(alone[at], together[row][at]) for at in alone)
        own_items, own_log_probabilities = decoder.generate(
            [prompt], [params[row]], count, chunk=64, steps_per_run=(3, 1, 8)
        )
        same &= np.array_equal(own_items[0], items[row])
        same &= np.array_equal(own_log_probabilities[0], log_probabilities[row])
        if not same:
            return False
    return True


def _compare_tokens(
    decoder: RuntimeDecoder,
    reference: ReferenceDecoder,
    prompts: list[Array],
    params: list[SamplingParams] | tuple[SamplingParams, ...],
    limit: int,
    steps_per_run: tuple[int, ...],
    found: _Findings,
) -> TokenAgreement:
    prompts = [prompts[row % len(prompts)] for row in range(len(params))]
    params = [_within_vocabulary(p, reference.spec) for p in params]
    count = min(NUM_GENERATED, limit - max(map(len, prompts)))
    actual, _ = decoder.generate(prompts, params, count, chunk=64, steps_per_run=steps_per_run)
    expected, logits = reference.generate(prompts, params, count)
    agreement = TokenAgreement(compared=0, equal=0)
    for row, p in enumerate(params):
        differing = np.flatnonzero(actual[row] != expected[row])
        if not len(differing):
            agreement = _add(agreement, TokenAgreement(compared=count, equal=count))
            continue
        # From the first difference on the rows read different items, so nothing after it can be compared.
        at = int(differing[0])
        near_tie = found.tolerances.near_tie + found.tolerances.of_largest * float(np.abs(logits[row][at]).max())
        tie = is_near_tie(logits[row][at], p, prompts[row], expected[row][:at], int(actual[row][at]), near_tie)
        agreement = _add(agreement, TokenAgreement(compared=at + 1, equal=at, near_ties=int(tie)))
    return agreement


def _within_vocabulary(params: SamplingParams, spec: ModelSpec) -> SamplingParams:
    assert isinstance(spec.input, TokenInput)
    size = spec.input.vocabulary_size
    return replace(params, logit_bias={token: bias for token, bias in params.logit_bias.items() if token < size})


def _compare_fed_back(
    decoder: RuntimeDecoder, reference: ReferenceDecoder, prompts: list[Array], found: _Findings
) -> None:
    params = [GREEDY] * len(prompts)
    actual, _ = decoder.generate(prompts, params, NUM_REAL_GENERATED, chunk=16, steps_per_run=STEPS_PER_RUN)
    expected, _ = reference.generate(prompts, params, NUM_REAL_GENERATED)
    _record(found, list(zip(actual, expected, strict=True)), prompts, 16)


def _add(one: TokenAgreement, other: TokenAgreement) -> TokenAgreement:
    return TokenAgreement(
        compared=one.compared + other.compared,
        equal=one.equal + other.equal,
        near_ties=one.near_ties + other.near_ties,
    )
