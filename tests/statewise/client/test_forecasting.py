"""Forecasts through the clients and the command line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from statewise import AsyncClient, Client, InvalidRequestError
from statewise.cli import main
from statewise_server.app import Application
from tests.models import make_repository
from tests.serving import running_server

MODEL = "lstm-mixture"
SERIES = np.random.default_rng(2).standard_normal((50, 3))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    with running_server(models=make_repository(tmp_path_factory.mktemp("models"), MODEL)) as application:
        yield application


def test_a_forecast_is_arrays(server: Application) -> None:
    """Quantiles by level, the mean, and the paths where they are asked for; a seed repeats it."""
    with Client(server.address) as client:
        forecast = client.forecast(MODEL, SERIES, 7, num_paths=30, quantiles=[0.25, 0.75], return_paths=True)
        again = client.forecast(MODEL, SERIES, 7, num_paths=30, seed=forecast.seed, return_paths=True)

    assert forecast.levels == (0.25, 0.75)
    assert forecast.quantiles.shape == (2, 7, 3)
    assert forecast.mean.shape == (7, 3)
    assert forecast.paths is not None
    assert forecast.paths.shape == (30, 7, 3)
    assert (forecast.quantiles[0] <= forecast.quantiles[1]).all()
    assert np.array_equal(again.paths, forecast.paths)
    assert again.quantiles.shape == (5, 7, 3)
    assert (forecast.info.model, forecast.info.version, forecast.info.variant) == (MODEL, 1, "cpu-float32")


def test_both_clients_give_the_same(server: Application) -> None:
    """The asynchronous one is the other's twin."""

    async def ask() -> Any:
        async with AsyncClient(server.address) as client:
            return await client.forecast(MODEL, SERIES, 4, seed=1, num_paths=10)

    with Client(server.address) as client:
        forecast = client.forecast(MODEL, SERIES, 4, seed=1, num_paths=10)

    assert np.array_equal(asyncio.run(ask()).quantiles, forecast.quantiles)
    assert forecast.paths is None


@pytest.mark.parametrize(
    ("context", "options", "field"),
    [
        (SERIES[:, :2], {}, "context.features"),
        (SERIES[:, 0], {}, "context.features"),
        (np.full((3, 3), np.nan), {}, "context"),
        (SERIES[:0], {}, "context"),
        (["a", "b"], {}, "context"),
        (SERIES, {"num_paths": 0}, "num_paths"),
        (SERIES, {"num_paths": "many"}, "num_paths"),
        (SERIES, {"quantiles": [0.9, 0.1]}, "quantiles[1]"),
        (SERIES, {"temperature": -1.0}, "temperature"),
        (SERIES, {"seed": -1}, "seed"),
    ],
)
def test_bad_input_names_its_field(server: Application, context: Any, options: dict[str, Any], field: str) -> None:
    """Whether it is the client or the server that finds it."""
    with Client(server.address) as client, pytest.raises(InvalidRequestError) as caught:
        client.forecast(MODEL, context, 4, **options)

    assert caught.value.field == field


def test_unknown_options_are_refused(server: Application) -> None:
    """A misspelt option must not be the default in silence."""
    with Client(server.address) as client, pytest.raises(TypeError, match="paths"):
        client.forecast(MODEL, SERIES, 4, paths=10)  # type: ignore[call-arg]


def command(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in ("forecast", MODEL, *arguments)])
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out, captured.err


def test_the_command_reads_a_file_and_draws(
    server: Application, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A .csv in, a table, JSON and a picture out."""
    file, picture = tmp_path / "series.csv", tmp_path / "fan.png"
    np.savetxt(file, SERIES, delimiter=",", header="a,b,c", comments="")
    where = ("--file", file, "--horizon", "6", "--seed", "4", "--address", server.address)

    code, output, _ = command(capsys, *where, "--plot", picture, "--columns", "a,b,c")
    _, printed, _ = command(capsys, *where, "--json", "--paths", "20", "--last", "10")

    assert code == 0
    assert "seed 4" in output
    assert picture.read_bytes().startswith(b"\x89PNG")
    answer = json.loads(printed)
    assert answer["levels"] == [0.05, 0.25, 0.5, 0.75, 0.95]
    assert np.shape(answer["quantiles"]) == (5, 6, 3)
    with Client(server.address) as client:
        expected = client.forecast(MODEL, np.loadtxt(file, delimiter=",", skiprows=1)[-10:], 6, num_paths=20, seed=4)
    assert np.array(answer["mean"]) == pytest.approx(expected.mean)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--file", "missing.csv", "--horizon", "3"), "missing.csv"),
        (("--file", "series.csv", "--horizon", "0"), "--horizon: must lie in"),
        (("--file", "series.csv", "--horizon", "3", "--columns", "d"), "has no column 'd'"),
        (("--file", "series.csv", "--horizon", "3", "--plot", "no/such/folder.png"), "--plot: no/such/folder.png"),
    ],
)
def test_the_command_tells_what_is_wrong(
    arguments: tuple[str, ...],
    message: str,
    server: Application,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line, exit code 2."""
    monkeypatch.chdir(tmp_path)
    np.savetxt("series.csv", SERIES, delimiter=",", header="a,b,c", comments="")

    code, _, errors = command(capsys, *arguments, "--address", server.address)

    assert code == 2
    assert message in errors.replace("\n", " ")
