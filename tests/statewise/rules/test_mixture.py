"""The rules of mixtures of Gaussians: layout, density, draw and noise."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from statewise.errors import InvalidRequestError
from statewise.model.spec import MixtureHead
from statewise.rules.mixture import Mixture, MixtureNoise, choose, in_other_units, log_density
from statewise.rules.sampling import SamplingParams

Covariance = Literal["diagonal", "full"]
COVARIANCES: tuple[Covariance, ...] = ("diagonal", "full")


def head_of(covariance: Covariance, features: int = 3, components: int = 4) -> MixtureHead:
    return MixtureHead(features=features, components=components, covariance=covariance)


def outputs(head: MixtureHead, count: int = 1, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, head.output_size)).astype(np.float32)


def by_hand(output: NDArray[np.float32], item: NDArray[np.float32], head: MixtureHead) -> float:
    """The textbook density: a weighted sum of Gaussians given by their covariances."""
    mixture = Mixture.of(output.astype(np.float64), head)
    weights = np.exp(mixture.logits) / np.exp(mixture.logits).sum()
    total = 0.0
    for weight, mean, factor in zip(weights, mixture.means, mixture.factors(), strict=True):
        covariance = factor.astype(np.float64) @ factor.T
        distance = (item - mean) @ np.linalg.inv(covariance) @ (item - mean)
        total += weight * np.exp(-distance / 2) / np.sqrt(np.linalg.det(2 * np.pi * covariance))
    return float(np.log(total))


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("features", [1, 3])
def test_the_density_is_the_textbooks(covariance: Covariance, features: int) -> None:
    """A sum of weighted Gaussians whose covariances are the factors times their transposes."""
    head = head_of(covariance, features)
    output, items = outputs(head, 20), np.random.default_rng(2).standard_normal((20, features)).astype(np.float32)

    expected = [by_hand(*pair, head) for pair in zip(output, items, strict=True)]

    assert log_density(output, items, head) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_a_density_far_from_everything_is_a_number() -> None:
    """It is small, and neither minus infinity nor NaN, so that sums of it say something."""
    head = head_of("full")

    density = log_density(outputs(head), np.full((1, 3), 1e30, np.float32), head)

    assert np.isfinite(density).all()
    assert density < -1e20


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_have_the_tempered_moments(covariance: Covariance, temperature: float) -> None:
    """Weights to the power of 1/T, normalised, and T times the covariances: their mean and covariance come out."""
    head = head_of(covariance)
    output = outputs(head)
    mixture = Mixture.of(output[0].astype(np.float64), head)
    weights = np.exp(mixture.logits / temperature)
    weights /= weights.sum()
    mean = weights @ mixture.means
    inside = np.einsum("k,kij,klj->il", weights, mixture.factors(), mixture.factors())
    between = np.einsum("k,ki,kj->ij", weights, mixture.means - mean, mixture.means - mean)

    noise = MixtureNoise(3, head.features).take(0, 200_000)
    drawn = choose(np.broadcast_to(output, (len(noise), head.output_size)), head, temperature, noise)

    assert np.abs(drawn.mean(axis=0) - mean).max() < 0.03
    assert np.abs(np.cov(drawn.T) - temperature * inside - between).max() < 0.2


def test_temperature_0_is_the_mean_of_the_most_probable_component() -> None:
    """Whatever the noise; of equally probable ones the first."""
    head = head_of("diagonal", features=1, components=3)
    output = np.array([1, 2, 2, 10, 20, 30, 0, 0, 0], np.float32)

    assert choose(output, head, 0.0, np.array([0.9, 5.0], np.float32)).tolist() == [20.0]


def test_a_temperature_as_low_as_can_be_chooses_the_most_probable_component() -> None:
    """No overflow: the smallest float32 works as any other."""
    head = head_of("diagonal", features=1, components=3)
    output = np.array([1, 3, 2, 10, 20, 30, 0, 0, 0], np.float32)

    assert choose(output, head, 1e-45, np.array([0.999, 1.0], np.float32)) == pytest.approx([20.0], abs=1e-3)


def test_an_output_that_is_not_finite_gives_no_vector() -> None:
    """Not even where the component that is drawn has finite parameters."""
    head = head_of("diagonal", features=1, components=2)
    output = np.array([np.nan, 0, 1, 2, 0, 0], np.float32)

    assert np.isnan(choose(output, head, 0.0, np.zeros(2, np.float32))).all()


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_other_units_scale_vectors_and_densities(covariance: Covariance) -> None:
    """In raw units draws are the standardised ones times the deviation plus the mean, densities divided by it."""
    head = head_of(covariance)
    mean, deviation = np.array([100.0, -5.0, 0.0]), np.array([20.0, 0.1, 3.0])
    factor, shift = in_other_units(head, mean, deviation)
    output, noise = outputs(head, 50), MixtureNoise(1, 3).take(0, 50)
    raw = (output * factor + shift).astype(np.float32)

    drawn = choose(output, head, 0.7, noise)
    drawn_raw = choose(raw, head, 0.7, noise)

    assert drawn_raw == pytest.approx(drawn * deviation + mean, rel=1e-4, abs=1e-4)
    expected = log_density(output, drawn, head) - np.log(deviation).sum()
    assert log_density(raw, drawn_raw, head) == pytest.approx(expected, rel=1e-2, abs=2e-2)


def test_noise_belongs_to_its_position() -> None:
    """Taken in any pieces, over the ends of blocks, and from any position, the numbers are the same."""
    whole = MixtureNoise(7, 3).take(0, 300)
    pieces = MixtureNoise(7, 3)

    taken = np.concatenate([pieces.take(start, 25) for start in range(0, 300, 25)])

    assert whole.shape == (300, 4)
    assert taken.tobytes() == whole.tobytes()
    assert MixtureNoise(7, 3).take(250, 10).tobytes() == whole[250:260].tobytes()
    assert MixtureNoise(8, 3).take(0, 300).tobytes() != whole.tobytes()


def test_noise_is_one_uniform_and_normals() -> None:
    """The first number lies in [0, 1), the others have mean 0, deviation 1 and no correlation."""
    noise = MixtureNoise(5, 3).take(0, 100_000)

    assert noise[:, 0].min() >= 0
    assert noise[:, 0].max() < 1
    assert noise[:, 0].mean() == pytest.approx(0.5, abs=0.01)
    assert noise[:, 1:].mean(axis=0) == pytest.approx(np.zeros(3), abs=0.02)
    assert np.cov(noise[:, 1:].T) == pytest.approx(np.eye(3), abs=0.02)


def test_the_largest_uniform_number_is_below_1() -> None:
    """A number that float32 rounds up to 1 would lie behind the last component."""

    class AlmostOne(np.random.Generator):
        def random(self, shape: tuple[int, ...]) -> NDArray[np.float64]:  # type: ignore[override]
            return np.full(shape, 1 - 2.0**-53)

    block = MixtureNoise(1, 2)._make_block(AlmostOne(np.random.Philox()))

    assert block[:, 0].max() < 1
    assert np.isfinite(block).all()


def test_full_covariances_have_a_limit() -> None:
    """Their parameters grow with the square of the features; the message names the way out."""
    with pytest.raises(ValueError, match="at most 64 features, got 65; use diagonal"):
        MixtureHead(features=65, components=2, covariance="full")


@pytest.mark.parametrize(
    ("params", "field"),
    [
        (SamplingParams(top_k=3), "top_k"),
        (SamplingParams(top_p=0.9), "top_p"),
        (SamplingParams(min_p=0.1), "min_p"),
        (SamplingParams(repetition_penalty=1.2), "repetition_penalty"),
        (SamplingParams(presence_penalty=0.5), "presence_penalty"),
        (SamplingParams(frequency_penalty=0.5), "frequency_penalty"),
        (SamplingParams(logit_bias={1: 1.0}), "logit_bias"),
        (SamplingParams(temperature=float("nan")), "temperature"),
        (SamplingParams(temperature=-1.0), "temperature"),
        (SamplingParams(seed=2**64), "seed"),
    ],
)
def test_what_works_on_tokens_is_refused(params: SamplingParams, field: str) -> None:
    """Vectors have a temperature and a seed; everything else is named, as are bad values of these."""
    with pytest.raises(InvalidRequestError) as caught:
        params.validate_for_vectors()

    assert caught.value.field == field
