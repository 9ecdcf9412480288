"""A training on two ranks, scraped from outside by plain HTTP: where it is, what it says, what is left of it."""

import json
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sparta.service.telemetry.endpoint import PORT
from tests.faults import harness, inject
from tests.faults.ranks import Attempt, start
from tests.service import toys

LINGER = {"linger_seconds": 60}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.write_dataset(tmp_path_factory.mktemp("data"))


def targets(run: Path, attempt: Attempt) -> list[dict[str, Any]]:
    """What the file for Prometheus says, once it is there."""
    while not (run / "metrics.json").exists():
        assert all(process.is_alive() for process in attempt.processes), attempt.said(0)
        time.sleep(0.01)
    found: list[dict[str, Any]] = json.loads((run / "metrics.json").read_text())
    return found


def get(target: dict[str, Any], path: str) -> str:
    with urlopen(f"http://{target['targets'][0]}{path}", timeout=30) as answer:
        text: str = answer.read().decode()
        return text


def name(metric: str, /, **labels: str) -> str:
    """A series of one rank."""
    return metric + "".join(f" {key}={labels[key]}" for key in sorted(labels) if key not in ("run", "rank"))


def samples(text: str) -> dict[str, float]:
    """Values by series."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[name(sample.name, **sample.labels)] = sample.value
    return found


def scraped(attempt: Attempt, found: list[dict[str, Any]]) -> list[dict[str, float]]:
    """What each rank said last, asked again and again until all have ended."""
    texts = ["" for _ in found]
    while any(process.is_alive() for process in attempt.processes):
        for rank, target in enumerate(found):
            with suppress(OSError):  # it has ended
                texts[rank] = get(target, "/metrics")
        time.sleep(0.5)
    return [samples(text) for text in texts]


def test_two_ranks_tell_all_that_the_result_says(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "clicks-7"
    job = harness.write_job(tmp_path, data, metrics=LINGER)
    attempt = start(job, run, 2)
    found = targets(run, attempt)
    assert [target["labels"]["rank"] for target in found] == ["0", "1"]
    assert {(t["labels"]["job"], t["labels"]["name"], t["labels"]["run"]) for t in found} == {
        ("sparta", "toy", "clicks-7")
    }
    assert all(target["targets"][0].startswith("127.0.0.1:") for target in found), (
        "nobody else is to reach it"
    )
    while not (run / "result.json").exists():  # nothing is lost to who kills it from now on
        assert all(process.is_alive() for process in attempt.processes), attempt.said(0)
        time.sleep(0.01)
    said = scraped(attempt, found)
    assert attempt.wait() == [0, 0]
    result = json.loads((run / "result.json").read_text())
    assert sum(each["sparta_examples_total"] for each in said) == result["examples"]
    for each in said:
        assert each["sparta_steps_total"] == result["steps"]
        assert each["sparta_restarts_total"] == 0
        for split, tasks in result["eval"].items():
            labels = {"task": "click", "split": split}
            assert each[name("sparta_auc", **labels)] == tasks["click"]["auc"]
            assert each[name("sparta_normalized_entropy", **labels)] == tasks["click"]["ne"]
        for phase in ("data_wait", "input_dist", "ascend", "second_pass", "optimizer"):
            assert each[name("sparta_phase_seconds_count", phase=phase)] >= result["steps"] - 1, phase
        assert each[name("sparta_phase_seconds_count", phase="eval")] == 2
        assert each["sparta_checkpoints_total"] == result["checkpoints"]["saved"]
        assert each["sparta_checkpoint_bytes"] == result["checkpoints"]["bytes"]
        assert each["sparta_dense_gradient_norm"] > 0
        assert each["process_resident_memory_bytes"] > 1e6
    for table, most in result["most_frequent"].items():
        assert {each[name("sparta_table_frequency_max", table=table)] for each in said} == {
            most["occurrences"]
        }
        assert sum(each.get(name("sparta_table_ids", table=table), 0) for each in said) > 0
    assert not (run / "metrics.json").exists(), "an orderly end is nobody's alarm"


def test_the_start_after_a_kill_is_counted_and_a_killed_run_is_missed(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = harness.write_job(tmp_path, data, metrics=LINGER)
    attempt = start(job, run, 2, inject.at_step, 1, 4)
    assert attempt.wait()[1] == -9
    assert (run / "metrics.json").exists()
    (run / "metrics.json").unlink()
    attempt = start(job, run, 2)
    for said in scraped(attempt, targets(run, attempt)):
        assert said["sparta_restarts_total"] == 1
    assert attempt.wait() == [0, 0]


def test_without_a_port_nobody_answers_and_a_taken_one_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    job = harness.write_job(tmp_path, data, metrics={"port": None}, train={"ranks": 1, "max_steps": 1})
    assert start(job, tmp_path / "silent", 1).wait() == [0]
    assert not (tmp_path / "silent" / "metrics.json").exists()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv(PORT, "")
        port = taken.getsockname()[1]
        job = harness.write_job(tmp_path, data, metrics={"port": port}, train={"ranks": 1, "max_steps": 1})
        attempt = start(job, tmp_path / "refused", 1)
        assert attempt.wait() == [2]
    assert f"metrics.port: 127.0.0.1:{port} cannot be listened on" in attempt.said(0)


class Gateway(BaseHTTPRequestHandler):
    """Takes what is pushed to it, or answers what is no HTTP."""

    pushed: ClassVar[dict[str, str]] = {}
    garbles: ClassVar[bool] = False

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.garbles:
            self.wfile.write(b"what?\n")
            return
        self.pushed[self.path] = body
        self.send_response(202)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads it."""


@pytest.mark.parametrize("garbles", [False, True])
def test_the_last_numbers_are_pushed_and_a_gateway_that_fails_costs_nothing(
    data: Path, tmp_path: Path, garbles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Gateway, "garbles", garbles)
    monkeypatch.setattr(Gateway, "pushed", {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), Gateway)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"127.0.0.1:{server.server_address[1]}"
    job = harness.write_job(
        tmp_path, data, metrics={"pushgateway": address}, train={"ranks": 1, "max_steps": 3, "epochs": 1}
    )
    attempt = start(job, tmp_path / "run", 1)
    assert attempt.wait() == [0]
    server.shutdown()
    thread.join()
    server.server_close()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    if garbles:
        assert f"note: metrics.pushgateway {address}: not pushed (" in attempt.said(0)
        assert Gateway.pushed == {}
        return
    ((path, text),) = Gateway.pushed.items()
    assert path.startswith("/metrics/job/sparta/")
    assert {"name/toy", "run/run", "rank/0"} <= {"/".join(pair) for pair in pairs(path.split("/")[4:])}
    said = samples(text)
    assert said["sparta_examples_total"] == result["examples"]
    assert not [series for series in said if "timestamp" in series], (
        "what grows old would raise alarms for ever"
    )


def pairs(words: list[str]) -> list[tuple[str, str]]:
    return list(zip(words[::2], words[1::2], strict=True))
