"""Mixture heads in training: configuration, first weights, likelihood, bounds, a distribution that is found."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from statewise.model.spec import MixtureHead, ValueHead
from statewise.plugins import load_plugin
from statewise.rules import mixture
from statewise_training.families.shared.mixture import LOG_DIAGONAL_BOUND, MixtureLayer, log_density, output_layer
from statewise_training.families.shared.standardized import Standardized
from statewise_training.run.baselines import independent_nats, last_value_nats

FAMILIES: dict[str, dict[str, Any]] = {
    "rnn": {"hidden_size": 8},
    "lstm": {"hidden_size": 8},
    "gru": {"hidden_size": 8},
    "autoregressive": {"window": 3},
    "transformer": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "max_positions": 32},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_of_real_vectors_takes_a_mixture_head(name: str) -> None:
    """`head: mixture` is short for its defaults; the module gives as many numbers as the head says."""
    plugin = load_plugin(name)
    config = plugin.config_class(features=2, head="mixture", **FAMILIES[name])
    spec, module = plugin.spec(config), plugin.build(config)

    assert spec.head == MixtureHead(features=2, components=5, covariance="diagonal")
    assert module.output(torch.zeros(4, module.output.weight.shape[1])).shape == (4, 25)
    full = plugin.config_class(
        features=2, head={"kind": "mixture", "components": 3, "covariance": "full"}, **FAMILIES[name]
    )
    assert plugin.spec(full).head.output_size == 3 * (1 + 2 + 2 + 1)
    assert plugin.config_class.model_validate(full.model_dump(mode="json")) == full


def test_without_a_head_vectors_are_values() -> None:
    """As before, and by name too."""
    plugin = load_plugin("gru")

    for options in ({}, {"head": "value"}, {"head": {"kind": "value"}}):
        assert plugin.spec(plugin.config_class(features=2, **options)).head == ValueHead(features=2)


BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "tokens": ("gru", {"vocabulary_size": 9, "head": "mixture"}, "is for real vectors"),
    "another kind": ("gru", {"features": 1, "head": "labels"}, "value"),
    "no components": (
        "gru",
        {"features": 1, "head": {"kind": "mixture", "components": 0}},
        "greater than or equal to 1",
    ),
    "a key of no head": ("gru", {"features": 1, "head": {"kind": "mixture", "rank": 2}}, "rank"),
    "wide and full": ("gru", {"features": 65, "head": {"kind": "mixture", "covariance": "full"}}, "use diagonal"),
    "least squares": ("autoregressive", {"features": 1, "head": "mixture", "fit": "least_squares"}, "fit: gradient"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_heads_are_refused(name: str) -> None:
    """With what is wrong, and what to do."""
    family, options, message = BAD[name]

    with pytest.raises(ValidationError, match=message):
        load_plugin(family).config_class(**options)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_the_likelihood_is_that_of_the_rules(covariance: Any) -> None:
    """PyTorch and NumPy find the same density, near and far."""
    head = MixtureHead(features=3, components=4, covariance=covariance)
    rng = np.random.default_rng(1)
    outputs = rng.standard_normal((50, head.output_size)).astype(np.float32)
    items = (3 * rng.standard_normal((50, 3))).astype(np.float32)

    found = log_density(torch.from_numpy(outputs), torch.from_numpy(items), head)

    assert found.numpy() == pytest.approx(mixture.log_density(outputs, items, head), rel=1e-4, abs=1e-3)


def test_components_begin_apart() -> None:
    """Equal weights, unit deviations, and means spread over a standard normal distribution in every feature."""
    head = MixtureHead(features=3, components=5)
    torch.manual_seed(0)
    parts = mixture.Mixture.of(MixtureLayer(8, head)(torch.zeros(8)).detach().numpy(), head)

    assert not parts.logits.any()
    assert not parts.log_diagonal.any()
    for feature in range(3):
        assert np.sort(parts.means[:, feature]) == pytest.approx([-1.2816, -0.5244, 0, 0.5244, 1.2816], abs=1e-3)
    assert len({tuple(np.argsort(parts.means[:, feature])) for feature in range(3)}) > 1


def test_a_series_that_stands_still_has_a_finite_likelihood() -> None:
    """The deviation falls to its bound and no further, and gradients stay finite, so that it can grow again."""
    head = MixtureHead(features=1, components=2)
    layer = MixtureLayer(1, head)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    for _ in range(1000):
        loss = -log_density(layer(torch.ones(1, 1)), torch.full((1, 1), 0.25), head).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    gradient = layer.bias.grad
    assert gradient is not None

    assert -LOG_DIAGONAL_BOUND <= loss.item() < -3
    assert torch.isfinite(gradient).all()
    wide = -log_density(layer(torch.ones(1, 1)), torch.full((1, 1), 1.0), head).mean()
    assert torch.isfinite(torch.autograd.grad(wide, layer.bias)[0]).all()


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_raw_units_are_those_of_the_series(covariance: Any) -> None:
    """A standardised model in raw units finds the raw vector's density, which is divided by the deviations."""
    head = MixtureHead(features=2, components=3, covariance=covariance)
    torch.manual_seed(1)

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = MixtureLayer(4, head)

    inner, mean, deviation = Inner(), [100.0, -3.0], [20.0, 0.5]
    nn.init.normal_(inner.head.weight)
    hidden, standard = torch.randn(30, 4), torch.randn(30, 2)
    raw = standard * torch.tensor(deviation) + torch.tensor(mean)

    found = log_density(Standardized(inner, head, mean, deviation).head(hidden), raw, head)

    expected = log_density(inner.head(hidden), standard, head) - math.log(20.0 * 0.5)
    assert found.detach().numpy() == pytest.approx(expected.detach().numpy(), rel=1e-3, abs=1e-2)


def test_gradient_finds_two_components() -> None:
    """Trained on draws of a known mixture, the layer's weights, means and deviations come to be those."""
    rng = np.random.default_rng(3)
    draws = np.where(rng.random(4000) < 0.7, rng.normal(-1, 0.3, 4000), rng.normal(1.5, 0.6, 4000))
    items = torch.from_numpy(draws.astype(np.float32))[:, None]
    head = MixtureHead(features=1, components=2)
    torch.manual_seed(2)
    layer = output_layer(1, head)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(300):
        loss = -log_density(layer(torch.zeros(1, 1)), items, head).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    parts = mixture.Mixture.of(layer(torch.zeros(1)).detach().numpy(), head)
    order = np.argsort(parts.means[:, 0])
    weights = mixture.weights(parts.logits, 1.0)[order]

    assert weights == pytest.approx([0.7, 0.3], abs=0.03)
    assert parts.means[order, 0] == pytest.approx([-1, 1.5], abs=0.1)
    assert np.exp(parts.log_diagonal[order, 0]) == pytest.approx([0.3, 0.6], abs=0.06)


def test_baselines_are_gaussians() -> None:
    """On independent draws the one Gaussian is as good as can be; on a random walk its steps' Gaussian is."""
    rng = np.random.default_rng(4)
    draws = [rng.normal(3, 2, (4000, 2)).astype(np.float32) for _ in range(2)]
    walks = [np.cumsum(part - 3, axis=0) for part in draws]
    entropy = 2 * (0.5 * math.log(2 * math.pi * math.e) + math.log(2))

    assert independent_nats(draws[:1], draws[1:]) == pytest.approx(entropy, abs=0.05)
    assert last_value_nats(walks[:1], walks[1:]) == pytest.approx(entropy, abs=0.05)
    assert independent_nats(walks[:1], walks[1:]) > entropy + 1
