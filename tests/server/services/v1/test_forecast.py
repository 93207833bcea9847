"""Forecasts through a real server: paths, quantiles, refusals, and rows that are free again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from statewise.v1 import generation_pb2
from statewise.v1 import prediction_pb2 as pb
from statewise.v1.prediction_pb2_grpc import PredictionServiceStub
from statewise_server.app import Application
from tests.models import make_repository
from tests.serving import running_server

FEATURES = 3
Call = Callable[..., pb.ForecastResponse]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two mixtures of random weights, and a model of values."""
    return make_repository(tmp_path_factory.mktemp("models"), "lstm-mixture", "transformer-mixture", "gru-series")


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Application]:
    with running_server(models=models, max_forecast_numbers=100_000, engine={"max_rows": 4}) as application:
        yield application


@pytest.fixture(scope="module")
def stub(server: Application) -> Iterator[Any]:
    with grpc.insecure_channel(server.address) as channel:
        yield PredictionServiceStub(channel)  # type: ignore[no-untyped-call] # generated


def series(length: int, features: int = FEATURES) -> generation_pb2.VectorSequence:
    values = np.random.default_rng(length).standard_normal((length, features))
    return generation_pb2.VectorSequence(features=features, values=values.ravel())


def request(model: str = "lstm-mixture", length: int = 70, **fields: Any) -> pb.ForecastRequest:
    given = {"context": series(length), "horizon": 5, "num_paths": 20, "seed": 7, "return_paths": True} | fields
    return pb.ForecastRequest(model=model, **given)


def array(values: generation_pb2.VectorSequence) -> NDArray[np.float32]:
    return np.array(values.values, np.float32).reshape(-1, values.features)


def paths_of(response: pb.ForecastResponse) -> NDArray[np.float32]:
    return np.stack([array(path) for path in response.paths])


def assert_rows_are_free(server: Application) -> None:
    deadline = time.monotonic() + 5
    engines = [entry.engine for entry in server.repository.entries() if entry.engine]
    while any(engine.num_running or engine.num_waiting for engine in engines):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("model", ["lstm-mixture", "transformer-mixture"])
def test_quantiles_and_mean_are_those_of_the_paths(model: str, stub: Any) -> None:
    """Of each feature at each item by itself, interpolated linearly; more paths than rows are no matter."""
    response = stub.Forecast(request(model, quantiles=[0.1, 0.5, 0.9]))

    paths = paths_of(response)
    levels = [array(series.values) for series in response.quantiles]

    assert paths.shape == (20, 5, FEATURES)
    assert [series.quantile for series in response.quantiles] == pytest.approx([0.1, 0.5, 0.9])
    assert np.stack(levels) == pytest.approx(np.quantile(paths, [0.1, 0.5, 0.9], axis=0), abs=1e-5)
    assert array(response.mean) == pytest.approx(paths.mean(axis=0), abs=1e-5)
    assert (response.info.model, response.info.variant, response.seed) == (model, "cpu-float32", 7)


@pytest.mark.parametrize("length", [1, 2, 64, 130])
@pytest.mark.parametrize("model", ["lstm-mixture", "transformer-mixture"])
def test_a_path_depends_on_seed_and_place_alone(model: str, length: int, stub: Any) -> None:
    """Bit for bit: asked for alone or among many, with the context read before or not, under load or without."""
    alone = paths_of(stub.Forecast(request(model, length, num_paths=3)))
    calls = [stub.Forecast.future(request(model, length, num_paths=n, seed=seed)) for n, seed in ((20, 7), (9, 8))]

    among, other = (paths_of(call.result()) for call in calls)

    assert among[:3].tobytes() == alone.tobytes()
    assert len(np.unique(among[:, 0, 0])) == 20
    assert not np.isin(other[:, 0, 0], among[:, 0, 0]).any()


def test_paths_are_what_the_reference_draws(stub: Any) -> None:
    """PyTorch, by the rules in NumPy, with the seeds of the places, comes to the same series."""
    from statewise.rules.sampling import SamplingParams
    from tests.models import reference_decoder

    seeds = [int(np.random.SeedSequence((7, place)).generate_state(1, np.uint64)[0]) for place in range(4)]
    params = [SamplingParams(seed=seed, temperature=0.5) for seed in seeds]

    paths = paths_of(stub.Forecast(request(num_paths=4, temperature=0.5)))
    expected, _ = reference_decoder("lstm-mixture").generate([array(series(70))] * 4, params, 5)

    assert paths == pytest.approx(np.stack(expected), abs=1e-4)


def test_temperature_0_is_one_path(stub: Any) -> None:
    """All paths are the most probable component's means, and all quantiles the same."""
    response = stub.Forecast(request(temperature=0.0))

    assert (paths_of(response) == paths_of(response)[0]).all()
    assert array(response.quantiles[0].values) == pytest.approx(array(response.quantiles[-1].values))


def test_defaults(stub: Any) -> None:
    """Without a number of paths, quantiles or a seed there are 100, five and one that is told; and no paths come."""
    response = stub.Forecast(pb.ForecastRequest(model="lstm-mixture", context=series(3), horizon=2))

    again = stub.Forecast(pb.ForecastRequest(model="lstm-mixture", context=series(3), horizon=2, seed=response.seed))

    assert [round(series.quantile, 6) for series in response.quantiles] == [0.05, 0.25, 0.5, 0.75, 0.95]
    assert not response.paths
    assert response.quantiles == again.quantiles


BAD = {
    "no model": ({"model": ""}, "no model"),
    "a model of values": ({"model": "gru-series"}, "model: 'gru-series' has a value head"),
    "a negative version": ({"version": -1}, "version: must be 0"),
    "horizon 0": ({"horizon": 0}, "horizon: must lie in [1, 65536], got 0"),
    "an absurd horizon": ({"horizon": 2**62}, "horizon: must lie in"),
    "a horizon beyond the model": (
        {"model": "transformer-mixture", "horizon": 250},
        "horizon: 250 after 70 items exceed the model's 300 positions; at most 231 fit",
    ),
    "no paths": ({"num_paths": 0}, "num_paths: must lie in [1, 1000], got 0"),
    "too many paths": ({"num_paths": 1001}, "num_paths: must lie in [1, 1000], got 1001"),
    "too many numbers": (
        {"num_paths": 1000, "horizon": 34},
        "num_paths: 1000 paths of 34 items of 3 numbers are 102,000",
    ),
    "quantile 0": ({"quantiles": [0.0, 0.5]}, "quantiles[0]: must lie in (0, 1), got 0"),
    "quantile NaN": ({"quantiles": [0.5, float("nan")]}, "quantiles[1]: must lie in (0, 1), got nan"),
    "quantiles that fall": ({"quantiles": [0.5, 0.4]}, "quantiles[1]: must ascend, got 0.4 after 0.5"),
    "too many quantiles": ({"quantiles": [0.5] * 101}, "quantiles: at most 100, got 101"),
    "a negative temperature": ({"temperature": -1.0}, "temperature: must lie in [0, 100], got -1"),
    "temperature NaN": ({"temperature": float("nan")}, "temperature: must lie in"),
    "no context": ({"context": None}, "context.features: model 'lstm-mixture' reads 3 features, got 0"),
    "an empty context": ({"context": generation_pb2.VectorSequence(features=3)}, "context.values: must hold time x 3"),
    "another width": ({"context": series(4, 2)}, "context.features: model 'lstm-mixture' reads 3 features, got 2"),
    "half a vector": (
        {"context": generation_pb2.VectorSequence(features=3, values=[1, 2, 3, 4])},
        "context.values: must hold time x 3 numbers",
    ),
    "NaN": (
        {"context": generation_pb2.VectorSequence(features=3, values=[1, float("nan"), 3])},
        "context.values: holds NaN or infinity",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_its_field(name: str, stub: Any, server: Application) -> None:
    """Before anything is run, and with what to do about it."""
    fields, message = BAD[name]

    with pytest.raises(grpc.RpcError) as caught:
        stub.Forecast(request(**fields))

    expected = grpc.StatusCode.NOT_FOUND if name == "no model" else grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.code() is expected
    assert caught.value.details().startswith(message)


def test_a_deadline_frees_the_rows(stub: Any, server: Application) -> None:
    """A forecast that cannot be done in time ends with DEADLINE_EXCEEDED, and leaves no row or waiting path behind."""
    with pytest.raises(grpc.RpcError) as caught:
        stub.Forecast(request(horizon=2000, num_paths=16, return_paths=False), timeout=0.05)

    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert_rows_are_free(server)


def test_a_cancelled_forecast_frees_the_rows(stub: Any, server: Application) -> None:
    """However many of its paths run or wait."""
    call = stub.Forecast.future(request(horizon=2000, num_paths=16, return_paths=False))
    time.sleep(0.1)

    call.cancel()

    assert_rows_are_free(server)
    assert len(paths_of(stub.Forecast(request()))) == 20


def test_a_short_queue_is_enough(models: Path) -> None:
    """Where only one request may wait, paths wait outside; a forecast that finds the queue full is refused."""
    with (
        running_server(models=models, engine={"max_rows": 2, "max_waiting": 1}) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub: Any = PredictionServiceStub(channel)  # type: ignore[no-untyped-call] # generated
        assert len(paths_of(stub.Forecast(request()))) == 20

        codes = []

        def ask() -> None:
            call = stub.Forecast.future(request(horizon=300, num_paths=30, return_paths=False))
            codes.append(call.code())

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert_rows_are_free(server)
