"""SIGTERM to one rank: all stop at the same step, save if there is time, and say so."""

import json
import signal
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
