"""Mixtures of Gaussians over real vectors: the rules, stated once, in NumPy.

The graph (export/mixture.py) computes the same, within rounding; the PyTorch reference calls this module. Outputs have
the layout that `statewise.model.spec.MixtureHead` describes. Temperature T makes the components' weights
weights^(1/T), normalised, and their covariances T times as large: 1 is the model's own distribution, 0 the mean of its
most probable component.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from statewise.model.spec import HeadSpec, MixtureHead
from statewise.rules.sampling import Uniforms

Reals = NDArray[np.floating[Any]]

LEAST_LOG_DENSITY = -1e30
"""Floor of a component's log-density, so that a vector far from all components still has a finite density."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """The parameters in one or many outputs; leading axes are the outputs'."""

    logits: Reals
    """`[..., components]`."""
    means: Reals
    """`[..., components, features]`."""
    log_diagonal: Reals
    """`[..., components, features]`, of the lower Cholesky factors of the covariances."""
    below: Reals
    """`[..., components, features * (features - 1) / 2]`, row by row; of no width where covariances are diagonal."""

    @classmethod
    def of(cls, output: Reals, head: MixtureHead) -> Mixture:
        """The parameters in an output `[..., output_size]`."""
        count, width = head.components, head.features
        ends = np.cumsum([count, count * width, count * width])
        logits, means, log_diagonal, below = np.split(output, ends, axis=-1)
        shape = (*output.shape[:-1], count, width)
        below = below.reshape(*shape[:-1], below.shape[-1] // count)
        return cls(logits, means.reshape(shape), log_diagonal.reshape(shape), below)

    def factors(self) -> Reals:
        """Lower Cholesky factors of the covariances, `[..., components, features, features]`."""
        width = self.means.shape[-1]
        factors = np.zeros((*self.means.shape, width), np.float32)
        diagonal = np.arange(width)
        factors[..., diagonal, diagonal] = np.exp(self.log_diagonal.astype(np.float64))
        if self.below.shape[-1]:
            factors[(..., *np.tril_indices(width, -1))] = self.below
        return factors


def log_density(output: Reals, items: Reals, head: MixtureHead) -> Reals:
    """Natural logarithm of the density at items `[..., features]`, under outputs `[..., output_size]`: `[...]`."""
    mixture = Mixture.of(output.astype(np.float64), head)
    difference = items[..., None, :] - mixture.means
    whitened = np.linalg.solve(mixture.factors().astype(np.float64), difference[..., None])[..., 0]
    components = -0.5 * np.square(whitened).sum(-1) - mixture.log_diagonal.sum(-1)
    components -= head.features * 0.5 * math.log(2 * math.pi)
    joint = np.maximum(components + mixture.logits, LEAST_LOG_DENSITY)
    density = np.logaddexp.reduce(joint, axis=-1) - np.logaddexp.reduce(mixture.logits, axis=-1)
    return np.asarray(density, np.float32)


def weights(logits: Reals, temperature: float) -> Reals:
    """Probabilities of the components `[..., components]` at a temperature above 0."""
    # The largest is subtracted first, so that no temperature, however low, makes it infinite.
    with np.errstate(over="ignore"):
        scaled = (logits - logits.max(axis=-1, keepdims=True)) / np.float32(temperature)
    result: Reals = np.exp(scaled)
    result /= result.sum(axis=-1, keepdims=True)
    return result


def draw_each(output: Reals, head: MixtureHead, temperature: float, noise: Reals) -> Reals:
    """Draw one vector from each component, `[..., components, features]`."""
    mixture = Mixture.of(output, head)
    spread = mixture.factors() @ noise[..., None, 1:, None]
    result: Reals = mixture.means + np.sqrt(np.float32(temperature)) * spread[..., 0]
    return result


def choose(output: Reals, head: MixtureHead, temperature: float, noise: Reals) -> Reals:
    """The next items `[..., features]`, from outputs `[..., output_size]` and noise `[..., 1 + features]`.

    The first number of the noise is uniform and chooses the component by inverse CDF, the others are standard normal.
    Not finite where the output is not.
    """
    logits = Mixture.of(output, head).logits
    if temperature == 0.0:
        component = np.argmax(logits, axis=-1)
    else:
        ends = np.cumsum(weights(logits, temperature), axis=-1, dtype=np.float64)
        component = np.sum(ends <= noise[..., :1].astype(np.float64) * ends[..., -1:], axis=-1)
    drawn = draw_each(output, head, temperature, noise)
    chosen = np.take_along_axis(drawn, component[..., None, None], axis=-2)[..., 0, :]
    return np.where(np.isfinite(output).all(axis=-1, keepdims=True), chosen, np.float32(np.nan))


def in_other_units(head: HeadSpec, mean: ArrayLike, deviation: ArrayLike) -> tuple[NDArray[np.float64], ...]:
    """Factor and shift that turn outputs about standardised vectors into outputs about raw ones.

    Both `[output_size]`; mean and deviation are of each feature, or of all. For value and mixture heads.
    """
    assert head.kind in ("value", "mixture")
    width = head.features
    center, scale = (np.full(width, part, np.float64) for part in (mean, deviation))
    if not isinstance(head, MixtureHead):
        return scale, center
    count, below = head.components, scale[np.tril_indices(width, -1)[0]] if head.covariance == "full" else scale[:0]
    factor = [np.ones(count), np.tile(scale, count), np.ones(count * width), np.tile(below, count)]
    shift = [np.zeros(count), np.tile(center, count), np.tile(np.log(scale), count), np.zeros(count * len(below))]
    return np.concatenate(factor), np.concatenate(shift)


class MixtureNoise(Uniforms):
    """The noise of one request for a mixture head: entry `i`, `[1 + features]`, belongs to its `i`-th vector.

    One uniform number and `features` standard normal ones, made of uniform ones in pairs (Box and Muller 1958).
    """

    block_length = 64

    def __init__(self, seed: int, features: int) -> None:
        super().__init__(seed)
        self._features = features

    def _make_block(self, generator: np.random.Generator) -> NDArray[np.float32]:
        num_pairs = (self._features + 1) // 2
        numbers = generator.random((self.block_length, 1 + 2 * num_pairs))
        # 1 - u lies in (0, 1], whose logarithm is finite.
        radius = np.sqrt(-2 * np.log1p(-numbers[:, 1 : 1 + num_pairs]))
        angle = 2 * np.pi * numbers[:, 1 + num_pairs :]
        normals = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, : self._features]
        # Rounded to float32, a number close to 1 would be 1.
        uniform = np.minimum(numbers[:, :1], 1 - 2.0**-24)
        return np.concatenate([uniform, normals], axis=1).astype(np.float32)


def noise_of(head: HeadSpec, seed: int) -> Uniforms:
    """The numbers that a request's items are drawn with; where the head draws none, they are not read."""
    return MixtureNoise(seed, head.features) if isinstance(head, MixtureHead) else Uniforms(seed)


def noise_shape(head: HeadSpec) -> tuple[int, ...]:
    """Shape of the noise of one item."""
    return (1 + head.features,) if isinstance(head, MixtureHead) else ()
