"""Vectors drawn by a server, over gRPC, have the distribution that the mixture and the temperature say."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from statewise.client import AsyncClient
from statewise.plugins import load_plugin
from statewise_export.pipeline import export_checkpoint
from statewise_server.app import Application
from statewise_training.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from tests.serving import running_server

WEIGHTS = (0.7, 0.3)
MEANS = (-1.0, 2.0)
DEVIATIONS = (0.5, 1.2)
NUM_REQUESTS, NUM_VECTORS = 200, 100
NUM_STREAMS = 64
TEMPERATURES = (0.5, 1.0, 2.0)

Sample = NDArray[np.float64]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    """Serve a model that says the same two components after every item."""
    folder, plugin = tmp_path_factory.mktemp("statistics"), load_plugin("autoregressive")
    config = plugin.config_class(features=1, window=1, head={"kind": "mixture", "components": 2})
    module = plugin.build(config)
    with torch.no_grad():
        module.output.weight.zero_()
        log_deviations = 7 * np.arctanh(np.log(DEVIATIONS) / 7)  # the layer bounds them
        module.output.bias.copy_(torch.tensor([*np.log(WEIGHTS), *MEANS, *log_deviations]))
    save_checkpoint(folder / "two", name="two", plugin_name="autoregressive", config=config, module=module)
    assert export_checkpoint(load_checkpoint(folder / "two"), folder / "models").folder
    with running_server(models=folder / "models", engine={"max_rows": NUM_STREAMS}) as application:
        yield application


@pytest.fixture(scope="module")
def drawn(server: Application) -> dict[float, Sample]:
    """20,000 numbers by temperature, every request with its own seed."""
    return {temperature: asyncio.run(_draw(server.address, temperature)) for temperature in TEMPERATURES}


async def _draw(address: str, temperature: float) -> Sample:
    room = asyncio.Semaphore(NUM_STREAMS)

    async def ask(client: AsyncClient, seed: int) -> NDArray[np.float32]:
        async with room:
            answer = await client.generate(
                "two", np.zeros((1, 1), np.float32), max_tokens=NUM_VECTORS, temperature=temperature, seed=seed
            )
        assert answer.vectors is not None
        return answer.vectors[:, 0]

    async with AsyncClient(address, timeout=60) as client:
        return np.concatenate(await asyncio.gather(*(ask(client, seed) for seed in range(NUM_REQUESTS)))).astype(float)


def distribution(values: Sample, temperature: float) -> Sample:
    """Weights to the power of 1/T, normalised, and variances times T: the probability of less."""
    weights = np.array(WEIGHTS) ** (1 / temperature)
    total = np.zeros_like(values)
    for weight, mean, deviation in zip(weights / weights.sum(), MEANS, DEVIATIONS, strict=True):
        scaled = torch.from_numpy((values - mean) / (deviation * math.sqrt(temperature)))
        total += weight * torch.special.ndtr(scaled).numpy()
    return total


def kolmogorov_smirnov_p_value(sample: Sample, temperature: float) -> float:
    """Of the largest distance between the sample's distribution and the formula's (Kolmogorov's limit)."""
    count = len(sample)
    expected = distribution(np.sort(sample), temperature)
    steps = np.arange(count + 1) / count
    distance = max((steps[1:] - expected).max(), (expected - steps[:-1]).max())
    terms = np.arange(1, 101)
    return float(2 * ((-1.0) ** (terms - 1) * np.exp(-2 * count * (terms * distance) ** 2)).sum())


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_vectors_are_drawn_from_the_tempered_mixture(temperature: float, drawn: dict[float, Sample]) -> None:
    """20,000 draws pass a Kolmogorov-Smirnov test of the mixture at that temperature, neither badly nor too well."""
    assert len(drawn[temperature]) == 20_000

    assert 0.001 < kolmogorov_smirnov_p_value(drawn[temperature], temperature) < 0.999


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_test_tells_a_wrong_distribution(temperature: float, drawn: dict[float, Sample]) -> None:
    """Against a temperature a quarter off, or with every draw shifted by 0.05, the same draws fail by far."""
    assert kolmogorov_smirnov_p_value(drawn[temperature], 1.25 * temperature) < 1e-4
    assert kolmogorov_smirnov_p_value(drawn[temperature] + 0.05, temperature) < 1e-4


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_neighbours_are_independent(temperature: float, drawn: dict[float, Sample]) -> None:
    """The model forgets what it read, so one draw says nothing of the next."""
    correlation = np.corrcoef(drawn[temperature][:-1], drawn[temperature][1:])[0, 1]

    assert abs(correlation) < 0.03
