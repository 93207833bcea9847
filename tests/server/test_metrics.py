"""Figures that a monitoring system scrapes: what each is of, and its unit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from statewise import Client
from statewise_server.app import Application
from statewise_server.metrics import ServerMetrics
from tests.serving import running_server


def value(metrics: ServerMetrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(f"statewise_{name}", labels) or 0.0


def test_the_seconds_of_a_message_are_shared_by_its_items() -> None:
    """Four items two seconds after the message before are half a second each: one observation."""
    metrics = ServerMetrics(list)
    metrics.later_items("m", 4, 2.0)

    assert value(metrics, "inter_token_seconds_sum", model="m") == 0.5
    assert value(metrics, "inter_token_seconds_count", model="m") == 1
    assert value(metrics, "inter_token_seconds_bucket", model="m", le="0.25") == 0
    assert value(metrics, "items_total", model="m") == 4
    assert value(metrics, "time_to_first_token_seconds_count", model="m") == 0


def test_a_message_without_items_is_no_latency() -> None:
    """A last message that only says why the stream ended is left out."""
    metrics = ServerMetrics(list)
    metrics.later_items("m", 0, 2.0)

    assert value(metrics, "inter_token_seconds_count", model="m") == 0


def test_the_first_message_is_a_time_to_first_token_whatever_it_holds() -> None:
    """Its seconds are not shared by its items."""
    metrics = ServerMetrics(list)
    metrics.first_items("m", 4, 2.0)

    assert value(metrics, "time_to_first_token_seconds_sum", model="m") == 2.0
    assert value(metrics, "items_total", model="m") == 4
    assert value(metrics, "inter_token_seconds_count", model="m") == 0


@pytest.fixture(scope="module")
def server() -> Iterator[Application]:
    """Serve with one row, a message for every step of one item, and prompts saved in chunks of four."""
    engine = {"max_rows": 1, "prefill_chunk": 4, "max_decode_steps": 1}
    with running_server(engine=engine, stream_interval_ms=0) as application:
        yield application


def test_a_stream_is_counted_once_by_each_figure(server: Application) -> None:
    """Items, first messages and later ones of a generation, and its prompt by what was read and what was loaded."""
    with Client(server.address) as client:
        answers = [client.generate("text", "abcdefg", max_tokens=3000, ignore_end_token=True) for _ in range(2)]
    metrics = server.metrics

    assert [answer.usage.completion_tokens for answer in answers] == [3000, 3000]
    assert value(metrics, "items_total", model="text") == 6000
    assert value(metrics, "time_to_first_token_seconds_count", model="text") == 2
    # The start token and seven characters; the second time the first whole chunk of four is loaded.
    assert value(metrics, "prompt_items_total", model="text") == 8 + 4
    assert value(metrics, "cached_prompt_items_total", model="text") == 4
    assert value(metrics, "steps_total", model="text") >= 6000
    assert value(metrics, "step_seconds_total", model="text") > 0
    assert value(metrics, "prefix_bytes", model="text") > 0


def test_calls_are_counted_by_their_end(server: Application) -> None:
    """A cancelled call, a refused one and a completed one are three codes."""
    method = "/statewise.v1.GenerationService/Generate"

    def counts() -> dict[str, float]:
        codes = ("OK", "CANCELLED", "NOT_FOUND")
        return {code: value(server.metrics, "calls_total", method=method, code=code) for code in codes}

    before = counts()
    with Client(server.address) as client:
        client.generate("text", "a", max_tokens=1)
        stream = client.stream("text", "a", max_tokens=50_000, ignore_end_token=True)
        next(iter(stream))
        # Another call cannot run beside it: one row is in use.
        assert value(server.metrics, "rows_in_use", model="text") == 1
        assert value(server.metrics, "waiting", model="text") == 0
        stream.close()
        with suppress(Exception):
            client.generate("nope", "a")
        client.generate("text", "a", max_tokens=1)
    after = counts()

    assert {code: after[code] - before[code] for code in after} == {"OK": 2, "CANCELLED": 1, "NOT_FOUND": 1}


def test_batches_are_counted_by_graph(server: Application) -> None:
    """Rows, items and items with padding of the batches of one model's graph."""
    with Client(server.address) as client:
        client.predict("sums", [[1, 1, 1]])
    labels = {"model": "sums", "graph": "predict"}
    # A batch is counted once its rows have their answers, and the client may be quicker.
    give_up = time.monotonic() + 10
    while value(server.metrics, "batches_total", **labels) < 1 and time.monotonic() < give_up:
        time.sleep(0.01)

    assert value(server.metrics, "batches_total", **labels) == 1
    assert value(server.metrics, "batch_rows_total", **labels) == 1
    assert value(server.metrics, "batch_items_total", **labels) == 3
    assert value(server.metrics, "batch_padded_items_total", **labels) == 16
    assert value(server.metrics, "batch_seconds_total", **labels) > 0
    assert value(server.metrics, "batch_wait_seconds_total", **labels) > 0
    assert value(server.metrics, "waiting_inputs", **labels) == 0


def test_health_is_that_of_all_parts_of_a_model() -> None:
    """One part that has failed makes the model's gauge 0."""

    def entry(name: str, *healthy: bool) -> Any:
        parts = [SimpleNamespace(is_healthy=part) for part in healthy]
        return SimpleNamespace(name=name, parts=parts, engine=None, predictor=None)

    metrics = ServerMetrics(lambda: [entry("good", True, True), entry("bad", True, False), entry("loading")])

    assert metrics.registry.get_sample_value("statewise_healthy", {"model": "good"}) == 1
    assert metrics.registry.get_sample_value("statewise_healthy", {"model": "bad"}) == 0
    assert metrics.registry.get_sample_value("statewise_healthy", {"model": "loading"}) is None
