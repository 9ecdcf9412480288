"""Partitions that arrive, of a row or of none, on more ranks than rows; killed in between, each is trained on once."""

import json
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.faults import harness, inject
from tests.faults.ranks import start
from tests.service.toys import raw_table

ROWS = {"day=1/a.parquet": 300, "day=1/b.parquet": 1, "day=2/a.parquet": 0, "day=3/a.parquet": 513}


@pytest.fixture
def job(data: Path, tmp_path: Path) -> Path:
    for seed, (name, rows) in enumerate(ROWS.items()):
        path = tmp_path / "watched" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(raw_table(600, seed).slice(0, rows), path)
    watch = {"folder": str(tmp_path / "watched"), "poll_seconds": 0.05, "idle_seconds": 0.3}
    return harness.write_job(
        tmp_path,
        data,
        data={"watch": watch},
        optim={"tables": {"name": "helen", "lr": 0.02}, "dense": {"lr": 0.01}},
        train={"epochs": 1, "log_every": 1, "ranks": 4},
        checkpoint={"every": 100, "keep": 2},
    )


def test_each_partition_is_trained_on_once_also_when_killed(job: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert start(job, whole, 4).wait() == [0] * 4
    for step in (2, 5):  # in the first partition, and in the last
        assert start(job, cut, 4, inject.at_step, 3, step).wait()[3] == -9
    assert start(job, cut, 4).wait() == [0] * 4
    lines = harness.history_of(whole)
    assert lines[-2]["examples"] == sum(ROWS.values())
    assert [line["step"] for line in lines if "eval" in line] == [3, 4, 9]  # after each that has rows
    assert harness.history_of(cut) == lines
    manifest = json.loads((cut / "checkpoints" / "step-000000009" / "MANIFEST.json").read_text())
    feed = manifest["training"]["feed"]
    assert ([*feed["done"], feed["current"]], feed["end"]) == (list(ROWS), 9)
    assert harness.digests(cut) == harness.digests(whole)


def passed_over(commit: Path) -> list[str]:
    manifest = json.loads((commit.parent / "MANIFEST.json").read_text())
    return list(manifest["training"]["feed"]["passed_over"])


def test_what_was_passed_over_is_not_tried_again_after_a_kill(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "watched"
    folder.mkdir()
    pq.write_table(raw_table(600, 0).slice(0, 64), folder / "a.parquet")
    (folder / "b.parquet").write_bytes(b"PAR1 and no more PAR1")
    watch = {"folder": str(folder), "poll_seconds": 0.05, "idle_seconds": 2, "settle_seconds": 0.01}
    job = harness.write_job(
        tmp_path,
        data,
        data={"watch": watch},
        optim={"dense": {"lr": 0.01}},
        train={"epochs": 1, "ranks": 2},
        tolerate={"bad_partitions": 1},
    )
    run = tmp_path / "run"
    attempt = start(job, run, 2)
    while not any(passed_over(path) for path in run.glob("checkpoints/step-*/COMMIT")):
        assert all(process.is_alive() for process in attempt.processes), attempt.said(0)
        time.sleep(0.01)
    attempt.kill(0)
    attempt.wait()
    pq.write_table(raw_table(600, 0).slice(0, 64), folder / "b.parquet")  # mended, but left behind
    assert start(job, run, 2).wait() == [0, 0]
    assert attempt.said(0).count("passed over: ") == 1
    assert json.loads((run / "result.json").read_text())["examples"] == 64
