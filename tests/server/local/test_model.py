"""A model in this process: the results of a server, for one input, a list or an iterator, and nothing left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import statewise
from statewise import BundleError, Client, ConfigError, InvalidRequestError, UnavailableError
from statewise_server.local.model import Model
from tests.models import make_repository
from tests.serving import model_repository, running_server

SETTINGS: dict[str, Any] = {"intra_op_threads": 1, "state_memory": "64MB", "max_rows": 4, "max_waiting": 4}
OPTIONS: dict[str, Any] = {"max_tokens": 6, "temperature": 0.8, "top_p": 0.9, "seed": 3, "logprobs": 2}


@pytest.fixture(scope="module")
def text() -> Iterator[Model]:
    with statewise.load(model_repository() / "text", **SETTINGS) as model:
        yield model


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with running_server(engine={"max_rows": 4}) as server, Client(server.address) as client:
        yield client


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repository(tmp_path_factory.mktemp("models"), "lstm-mixture")


def in_use(model: Model) -> int:
    engine = model._engine
    assert engine is not None
    return engine.num_running + engine.num_waiting


def wait_until_free(model: Model) -> None:
    deadline = time.monotonic() + 10
    while in_use(model):
        assert time.monotonic() < deadline, "a row is still in use"
        time.sleep(0.005)


def facts(generation: Any) -> tuple[Any, ...]:
    parts = (generation.text, generation.tokens, generation.log_probabilities, generation.finish_reason)
    return (*parts, generation.info, generation.usage.prompt_tokens, generation.usage.completion_tokens)


def test_ragged_prompts_give_what_a_server_gives(text: Model, client: Client) -> None:
    """Bit for bit and in order, from an iterator of many more prompts than the engine takes at once."""
    prompts = ["ab" * (place % 9) for place in range(60)]

    generations = list(text.generate(iter(prompts), **OPTIONS))

    assert list(map(facts, generations)) == [facts(client.generate("text", prompt, **OPTIONS)) for prompt in prompts]


def test_one_prompt_or_a_list(text: Model) -> None:
    """A text and a list of ids are one prompt; a list of these are as many."""
    one, ids = text.generate("ab", **OPTIONS), text.generate([99, 100], **OPTIONS)
    many = text.generate(["ab", "c"], **OPTIONS)
    of_ids = text.generate([[99, 100], [101]], **OPTIONS)

    assert facts(one) == facts(ids) == facts(many[0]) == facts(of_ids[0])
    assert facts(many[1]) == facts(of_ids[1])


def test_an_endless_iterator_is_read_as_far_as_needed(text: Model) -> None:
    """What waits is bounded, and leaving the iterator early frees all rows."""
    numbers = count()

    generations = text.generate(("a" for _ in numbers), **OPTIONS)
    assert len(list(islice(generations, 10))) == 10
    num_read = next(numbers)
    generations.close()

    assert num_read < 150
    wait_until_free(text)


def test_many_threads_share_a_model(text: Model) -> None:
    """Calls that find the engine full wait; none is refused."""
    expected = facts(text.generate("abc", **OPTIONS))
    found: list[Any] = []

    threads = [threading.Thread(target=lambda: found.append(text.generate("abc", **OPTIONS))) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert list(map(facts, found)) == [expected] * 30


def test_a_stream_gives_the_answer_in_chunks_and_is_left_early(text: Model) -> None:
    """The chunks are the answer; a stream that is closed frees its row."""
    whole = text.generate("ab", **OPTIONS)

    with text.stream("ab", **OPTIONS) as chunks:
        assert tuple(token for chunk in chunks for token in chunk.tokens) == whole.tokens
    stream = text.stream("a", max_tokens=60_000, ignore_end_token=True)
    next(stream)
    assert in_use(text) == 1
    stream.close()

    wait_until_free(text)


def test_errors_name_arguments_and_places(text: Model) -> None:
    """The results before a bad prompt are given; its error has its place."""
    results = text.generate(iter(["a", "b", [10**6]]), **OPTIONS)

    assert len(list(islice(results, 2))) == 2
    with pytest.raises(InvalidRequestError, match=r"^prompt\[2\]: id 1000000 is outside"):
        next(results)
    with pytest.raises(InvalidRequestError, match=r"^top_k: must be a whole number"):
        text.generate("a", top_k="many")
    with pytest.raises(InvalidRequestError, match=r"^length_penalty: must lie"):
        text.generate("a", num_beams=2, length_penalty=11.0)
    wait_until_free(text)


def test_whole_sequences_give_what_a_server_gives(text: Model, client: Client) -> None:
    """Scores and predictions, one, many or endless."""
    scores, expected = text.score(iter(["ab", "c"] * 20)), client.score("text", ["ab", "c"])
    with statewise.load(model_repository() / "sums" / "1", **SETTINGS) as sums:
        predictions = sums.predict([[1, 2], [0]])

        assert sums.predict([1, 2]).probabilities == predictions[0].probabilities
        with pytest.raises(InvalidRequestError, match="makes no embeddings"):
            sums.embed([1, 2])

    served = client.predict("sums", [[1, 2], [0]])
    assert [one.probabilities for one in predictions] == [one.probabilities for one in served]
    assert [score.total for score in scores] == [score.total for score in expected] * 20


def test_a_table_is_forecast_with_its_names_and_dates(mixture: Path) -> None:
    """Bit for bit the client's; the index goes on by the dates' frequency."""
    pd = pytest.importorskip("pandas")
    values = np.random.default_rng(2).standard_normal((30, 3))
    table = pd.DataFrame(values, columns=["a", "b", "c"], index=pd.date_range("2024-01-01", periods=30, name="day"))
    options: dict[str, Any] = {"num_paths": 12, "seed": 5, "quantiles": [0.1, 0.5], "return_paths": True}

    with statewise.load(mixture / "lstm-mixture", **SETTINGS) as model:
        forecast = model.forecast(table, 4, **options)
        plain = model.forecast(values, 4, **options)
        score = model.score(table)
    with running_server(models=mixture) as server, Client(server.address) as client:
        served = client.forecast("lstm-mixture", table, 4, **options)

    shown = forecast.to_dataframe()
    assert list(shown.index) == list(pd.date_range("2024-01-31", periods=4))
    assert list(shown["b"].columns) == ["mean", 0.1, 0.5]
    assert (forecast.features, plain.features, plain.index) == (("a", "b", "c"), None, None)
    assert forecast.paths.tobytes() == plain.paths.tobytes() == served.paths.tobytes()
    assert forecast.quantiles.tobytes() == served.quantiles.tobytes()
    assert forecast.levels == served.levels
    assert list(served.index) == list(forecast.index)
    assert len(score.to_dataframe()) == 29


def test_what_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    """A changed file, an unknown setting; and a closed model answers nothing."""
    with pytest.raises(BundleError, match="changed since it was written"):
        statewise.load(model_repository() / "broken")
    with pytest.raises(ConfigError, match=r"max_rowz: .* got 3; did you mean max_rows"):
        statewise.load(model_repository() / "text", max_rowz=3)
    model = statewise.load(model_repository() / "text", **SETTINGS)
    model.close()
    with pytest.raises(UnavailableError, match="is closed"):
        model.generate("a")
