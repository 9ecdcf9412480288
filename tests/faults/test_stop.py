"""SIGTERM to one rank: all stop at the same step, save if there is time, and say so."""

import json
import signal
import time
from pathlib import Path

import pytest

from tests.faults import harness, inject
from tests.faults.ranks import start


@pytest.mark.parametrize("step", [4, 5, 8])  # between two checkpoints, where one is due, in an evaluation
def test_all_ranks_stop_at_one_step_and_the_run_goes_on(
    job: Path, unkilled: Path, tmp_path: Path, step: int
) -> None:
    run = tmp_path / "run"
    attempt = start(job, run, 2, inject.at_step, 1, step, signal.SIGTERM)
    assert attempt.wait() == [0, 0]
    marker = json.loads((run / "STOPPED").read_text())
    assert (
        marker["step"] == marker["checkpoint"] <= step + 2
    )  # heard a step late; step 8 stops in its evaluation
    assert not (run / "result.json").exists()
    assert start(job, run, 2).wait() == [0, 0]
    assert not (run / "STOPPED").exists()
    assert harness.digests(run) == harness.digests(unkilled)


def test_a_save_that_would_not_fit_the_grace_is_not_begun(data: Path, unkilled: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = harness.write_job(
        tmp_path, data, checkpoint={"every": 3, "keep": 2, "grace_seconds": 1e-6, "background": False}
    )
    assert start(job, run, 2, inject.at_step, 0, 4, signal.SIGTERM).wait() == [0, 0]
    marker = json.loads((run / "STOPPED").read_text())
    assert (marker["step"], marker["checkpoint"]) == (5, 3)
    assert start(job, run, 2).wait() == [0, 0]
    assert harness.history_of(run) == harness.history_of(unkilled)


def test_a_second_training_in_the_directory_is_refused_and_the_first_knows_nothing_of_it(
    job: Path, unkilled: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    first = start(job, run, 2)
    while not (run / "schema.json").exists():
        assert first.processes[0].is_alive(), first.said(0)
        time.sleep(0.01)
    for rank in (0, 1):
        first.kill(rank, signal.SIGSTOP)
    assert start(job, run, 2).wait() == [2, 2]
    assert f"process {first.processes[0].pid} on " in first.said(0)
    assert "is training there; wait for it, stop it, or give another --run-dir" in first.said(0)
    for rank in (0, 1):
        first.kill(rank, signal.SIGCONT)
    assert first.wait() == [0, 0]
    assert harness.digests(run) == harness.digests(unkilled)
