"""A trial: one variant of a bundle, and everything that it is compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statewise.bundles.figures import Limits, Tolerances
from statewise.bundles.manifest import Variant
from statewise.bundles.reader import Bundle
from statewise.errors import BundleError
from statewise.model.spec import ModelSpec, TokenInput
from statewise.rules.mixture import in_other_units
from statewise_export.certify.driver import RuntimeDecoder
from statewise_export.certify.inputs import Prompts, Scale, random_items, random_sources
from statewise_export.certify.self_reference import SelfReference
from statewise_export.certify.tolerances import against_itself, against_pytorch
from statewise_export.graphs.variant import Tracer
from statewise_export.passes.variants import VARIANTS, VariantPlan
from statewise_server.runtime.steps.runner import Runner
from statewise_training.checkpoints.checkpoint import Checkpoint
from statewise_training.checkpoints.held_out import Pair
from statewise_training.reference.decoding import ReferenceDecoder
from statewise_training.reference.prediction import ReferencePredictor

Array = NDArray[Any]
Progress = Callable[[str], None]

PROMPT_LENGTHS = (1, 2, 7, 63, 64, 65, 130)
"""One item, two, an odd number, around a prefill chunk, and more than two of them."""
MAX_NEAR_LIMIT = 2047
"""A model of more positions is not filled: it would take too long and show nothing new."""
SOURCE_LENGTHS = (33, 16, 17, 15, MAX_NEAR_LIMIT, 7, 1)
"""One for each prompt: one item, odd numbers, both sides of a bucket's end, and as many as the model reads."""
BATCH_SIZES = (1, 2, 7, 16)
NUM_GENERATED = 200
"""Tokens generated behind each prompt, where the model has positions for them."""


@dataclass(frozen=True)
class Trial:
    """A variant on trial. Sessions, references and inputs are made when a check first asks for them."""

    bundle: Bundle
    variant_name: str
    tracer: Tracer
    """Traces the checkpoint's module; the variant's graphs are compared with these traces."""
    limits: Limits | None = None
    """Limits of the divergence from float32. With them the variant is compared with itself: it cannot equal PyTorch."""
    held_out: Array | list[Pair] | None = None
    """Items `[time]` or `[time, features]`, or pairs of source and target, that training has not seen, if any."""
    progress: Progress = lambda _: None
    device: str | None = None
    """Device to run the variant on instead of its own, for tests on machines that lack that."""

    @cached_property
    def variant(self) -> Variant:
        """The manifest's entry."""
        return self.bundle.variant(self.variant_name)

    @cached_property
    def placed(self) -> Bundle:
        """The bundle with the variant on the device where it is tried."""
        if self.device is None:
            return self.bundle
        variant = self.variant.model_copy(update={"device": self.device})
        variants = self.bundle.manifest.variants | {self.variant_name: variant}
        return Bundle(self.bundle.folder, self.bundle.manifest.model_copy(update={"variants": variants}))

    @property
    def plan(self) -> VariantPlan:
        """The plan that the variant was made by. Raises BundleError for a name that this version does not know."""
        if self.variant_name not in VARIANTS:
            known = ", ".join(VARIANTS)
            raise BundleError(f"{self.bundle}: variant {self.variant_name} is none of {known}; export it again")
        return VARIANTS[self.variant_name]

    @property
    def checkpoint(self) -> Checkpoint:
        """The model as it was trained."""
        return self.tracer.checkpoint

    @cached_property
    def spec(self) -> ModelSpec:
        """Spec of the checkpoint's model."""
        return self.tracer.spec

    @cached_property
    def scale(self) -> Scale:
        """The scale of the vectors that the model reads."""
        standardization = self.checkpoint.standardization
        return Scale(standardization.mean, standardization.deviation) if standardization else Scale()

    @cached_property
    def pytorch(self) -> ReferenceDecoder:
        """PyTorch in float32, eager."""
        return ReferenceDecoder(self.checkpoint.in_raw_units(), self.spec)

    @cached_property
    def predictor(self) -> ReferencePredictor:
        """The same for whole sequences."""
        return ReferencePredictor(self.pytorch)

    @cached_property
    def decoder(self) -> RuntimeDecoder:
        """The variant in the server's runtime."""
        return RuntimeDecoder(Runner.load(self.placed, self.variant_name, max_rows=max(BATCH_SIZES)))

    @property
    def is_exact(self) -> bool:
        """Whether outputs are held against PyTorch's."""
        return self.limits is None

    @cached_property
    def itself(self) -> SelfReference:
        """The variant's own single steps."""
        return SelfReference(self.decoder)

    @property
    def reference(self) -> ReferenceDecoder | SelfReference:
        """The reference for what the variant decodes: PyTorch, or the variant's own single steps."""
        return self.pytorch if self.is_exact else self.itself

    @cached_property
    def tolerances(self) -> Tolerances:
        """Tolerances of outputs against the reference."""
        if self.is_exact:
            return against_pytorch(self.spec, self.variant)
        outputs = self.itself.outputs(self.prompts.items, self.prompts.sources)
        return against_itself(np.concatenate(outputs) / self.units)

    @cached_property
    def units(self) -> NDArray[np.float64]:
        """Divisors of each number of an output before it is compared: deviations, so that 1 is a large error."""
        if isinstance(self.spec.input, TokenInput):
            return np.ones(1)
        return in_other_units(self.spec.head, 0.0, self.scale.deviation)[0]

    @property
    def deviation(self) -> NDArray[np.float64]:
        """Deviation of each feature of the vectors that the model gives."""
        return np.broadcast_to(np.asarray(self.scale.deviation, np.float64), self.spec.head.output_size)

    @property
    def position_limit(self) -> int:
        """Positions that a prompt and what is generated behind it may take."""
        return self.spec.max_positions or max(PROMPT_LENGTHS) + NUM_GENERATED

    @cached_property
    def prompts(self) -> Prompts:
        """Prompts of PROMPT_LENGTHS; half of a bounded model's positions are left for what is generated."""
        longest = (self.spec.max_positions or 2 * max(PROMPT_LENGTHS)) // 2
        lengths = [min(length, longest) for length in PROMPT_LENGTHS]
        if self.spec.source is None:
            return Prompts(random_items(self.spec, sorted(set(lengths)), self.scale))
        return Prompts(random_items(self.spec, lengths, self.scale), random_sources(self.spec, SOURCE_LENGTHS))
