"""Tokens drawn by a server, over gRPC, have the distribution that the model and the temperature say."""

from __future__ import annotations

import asyncio
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

VOCABULARY = 6
NUM_REQUESTS, NUM_TOKENS = 200, 100
NUM_STREAMS = 64
TEMPERATURES = (0.5, 1.0, 2.0)

Table = NDArray[np.float64]


@pytest.fixture(scope="module")
def text() -> NDArray[np.int32]:
    """Tokens of which each makes others of its own likely, and none impossible."""
    rng = np.random.default_rng(1)
    likely = rng.dirichlet(np.ones(VOCABULARY), VOCABULARY) * 0.7 + 0.3 / VOCABULARY
    tokens = [0]
    for _ in range(2000):
        tokens.append(rng.choice(VOCABULARY, p=likely[tokens[-1]]))
    return np.array(tokens, np.int32)


@pytest.fixture(scope="module")
def logits(text: NDArray[np.int32]) -> Table:
    """Log-frequencies `[last token, next token]` with one count added: what a counted Markov model is defined as."""
    counts = np.ones((VOCABULARY, VOCABULARY))
    np.add.at(counts, (text[:-1], text[1:]), 1)
    return np.log(counts / counts.sum(1, keepdims=True))


@pytest.fixture(scope="module")
def server(text: NDArray[np.int32], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    """Serve a Markov model that was fitted by counting the text."""
    folder, plugin = tmp_path_factory.mktemp("statistics"), load_plugin("markov")
    config = plugin.config_class(vocabulary_size=VOCABULARY)
    module = plugin.build(config)
    assert plugin.fit(module, config, [text])
    save_checkpoint(folder / "chain", name="chain", plugin_name="markov", config=config, module=module)
    assert export_checkpoint(load_checkpoint(folder / "chain"), folder / "models").folder
    with running_server(models=folder / "models", engine={"max_rows": NUM_STREAMS}) as application:
        yield application


@pytest.fixture(scope="module")
def drawn(server: Application) -> dict[float, Table]:
    """How often each token followed each, by temperature: 20,000 draws, every request with its own seed."""
    return {temperature: asyncio.run(_count(server.address, temperature)) for temperature in TEMPERATURES}


async def _count(address: str, temperature: float) -> Table:
    counts = np.zeros((VOCABULARY, VOCABULARY))
    room = asyncio.Semaphore(NUM_STREAMS)

    async def ask(client: AsyncClient, seed: int) -> None:
        first = seed % VOCABULARY
        async with room:
            answer = await client.generate("chain", [first], max_tokens=NUM_TOKENS, temperature=temperature, seed=seed)
        line = [first, *answer.tokens]
        np.add.at(counts, (line[:-1], line[1:]), 1)

    async with AsyncClient(address, timeout=60) as client:
        await asyncio.gather(*(ask(client, seed) for seed in range(NUM_REQUESTS)))
    return counts


def softmax(logits: Table, temperature: float) -> Table:
    weights = np.exp(logits / temperature)
    return weights / weights.sum(1, keepdims=True)


def chi_square_p_value(counts: Table, probabilities: Table) -> float:
    """Pearson's test of each row of counts against its categorical, all rows together."""
    expected = counts.sum(1, keepdims=True) * probabilities
    assert expected.min() > 5, "too few draws for the test"
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = counts.shape[0] * (counts.shape[1] - 1)
    # The upper tail of chi-square is the regularised upper incomplete gamma function.
    halves = (torch.tensor(value / 2, dtype=torch.float64) for value in (freedom, statistic))
    return float(torch.special.gammaincc(*halves))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_tokens_are_drawn_from_softmax_of_logits_over_temperature(
    temperature: float, drawn: dict[float, Table], logits: Table
) -> None:
    """20,000 draws pass a chi-square test of the counted table at that temperature, neither badly nor too well."""
    assert drawn[temperature].sum() == 20_000

    assert 0.001 < chi_square_p_value(drawn[temperature], softmax(logits, temperature)) < 0.999


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_test_tells_a_wrong_distribution(temperature: float, drawn: dict[float, Table], logits: Table) -> None:
    """Against a temperature a quarter off, or with one pair of tokens mixed up, the same draws fail by far."""
    hotter = softmax(logits, 1.25 * temperature)
    swapped = softmax(logits, temperature)
    swapped[0, :2] = swapped[0, 1::-1]

    assert chi_square_p_value(drawn[temperature], hotter) < 1e-4
    assert chi_square_p_value(drawn[temperature], swapped) < 1e-4
