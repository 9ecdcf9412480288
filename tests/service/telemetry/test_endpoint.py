"""One rank over HTTP: what Prometheus, probes and people are told."""

import json
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from sparta.models.errors import ConfigError
from sparta.service.telemetry.endpoint import Endpoint, listen_on
from sparta.service.telemetry.instruments import Instruments, Labelled


class Rank:
    """What a rank would say of itself."""

    def __init__(self) -> None:
        inner = CollectorRegistry()
        self.instruments = Instruments(inner)
        self.refreshed = 0
        self.wrong: str | None = None
        self.begun = False
        self.endpoint = Endpoint(
            Labelled(inner, {"run": "r", "rank": "3"}, self.refresh),
            health=lambda: self.wrong,
            ready=lambda: self.begun,
            status=lambda: {"step": 7},
            host="127.0.0.1",
            port=0,
        )

    def refresh(self) -> None:
        self.refreshed += 1
        self.instruments.loss.set(self.refreshed)

    def get(self, path: str, **headers: str) -> tuple[int, str, str]:
        try:
            with urlopen(Request(f"http://127.0.0.1:{self.endpoint.port}{path}", headers=headers)) as answer:
                return answer.status, answer.headers["Content-Type"], answer.read().decode()
        except HTTPError as refusal:
            return refusal.code, refusal.headers["Content-Type"], refusal.read().decode()


@pytest.fixture
def rank() -> Iterator[Rank]:
    rank = Rank()
    rank.endpoint.start()
    yield rank
    rank.endpoint.close()


def test_what_is_scraped_is_fresh_and_names_run_and_rank(rank: Rank) -> None:
    rank.instruments.steps.inc(5)
    for number in (1, 2):
        code, kind, text = rank.get("/metrics")
        assert code == 200
        assert kind.startswith("text/plain")
        families = {family.name: family for family in text_string_to_metric_families(text)}
        for family in families.values():
            assert all(
                sample.labels.items() >= {"run": "r", "rank": "3"}.items() for sample in family.samples
            )
        assert families["sparta_loss"].samples[0].value == number
        assert next(s.value for s in families["sparta_steps"].samples if s.name == "sparta_steps_total") == 5
    _, kind, text = rank.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert text.endswith("# EOF\n")


def test_probes(rank: Rank) -> None:
    assert rank.get("/readyz")[::2] == (503, "not training yet\n")
    rank.begun = True
    assert rank.get("/readyz")[::2] == (200, "ok\n")
    assert rank.get("/healthz")[::2] == (200, "ok\n")
    rank.wrong = "no step for 700 s"
    assert rank.get("/healthz")[::2] == (503, "no step for 700 s\n")


def test_status_and_what_is_not_there(rank: Rank) -> None:
    code, kind, text = rank.get("/status?pretty")
    assert (code, kind, json.loads(text)) == (200, "application/json", {"step": 7})
    assert rank.get("/")[0] == 404


def test_a_port_that_is_taken_is_refused_with_the_way_out(rank: Rank) -> None:
    def second() -> Endpoint:
        nothing: Any = None
        return Endpoint(
            nothing, health=nothing, ready=nothing, status=nothing, host="127.0.0.1", port=rank.endpoint.port
        )

    with pytest.raises(
        ConfigError, match=r"metrics\.port: 127\.0\.0\.1:\d+ cannot be listened on .*; give another"
    ):
        second()


def test_the_last_numbers_are_waited_for(rank: Rank) -> None:
    rank.get("/metrics")  # what was seen before does not count
    assert not rank.endpoint.wait_for_scrape(0.05)
    late = threading.Timer(0.2, rank.get, ["/metrics"])
    late.start()
    began = time.monotonic()
    assert rank.endpoint.wait_for_scrape(60)
    assert time.monotonic() - began < 30
    late.join()


@pytest.mark.parametrize(
    ("port", "environment", "expected"),
    [
        (0, {}, ("127.0.0.1", 0)),
        (9000, {}, ("127.0.0.1", 9002)),
        (0, {"SPARTA_METRICS_HOST": "0.0.0.0", "SPARTA_METRICS_PORT": "9400"}, ("0.0.0.0", 9402)),
        (9000, {"SPARTA_METRICS_HOST": "0.0.0.0", "SPARTA_METRICS_PORT": "9400"}, ("0.0.0.0", 9002)),
    ],
)
def test_ranks_of_a_machine_stand_side_by_side(
    port: int, environment: dict[str, str], expected: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SPARTA_METRICS_HOST", "SPARTA_METRICS_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert listen_on(port, 2) == expected
