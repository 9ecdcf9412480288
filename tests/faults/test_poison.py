"""A batch whose loss is NaN on one rank: no weight moves, and the run ends clearly or goes on, as the job says."""

import json
import math
from pathlib import Path

from tests.faults import harness, inject
from tests.faults.ranks import start


def test_by_default_the_run_ends_and_goes_on_from_the_last_good_checkpoint(
    job: Path, unkilled: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    attempt = start(job, run, 2, inject.poison, 1, 11)
    assert attempt.wait() == [3, 3]
    last = attempt.said(0).splitlines()[-1]
    assert last.startswith(
        "error: step 11: the loss or a gradient is not finite, so the weights are those before it"
    )
    assert "tolerate.bad_steps" in last
    assert harness.losses(run) == []
    again = start(job, run, 2)
    assert again.wait() == [0, 0]
    assert "going on after step 9" in again.said(0)  # the save under way when it ended is not lost
    assert harness.digests(run) == harness.digests(unkilled)


def test_a_step_that_is_tolerated_is_counted_and_moves_nothing(data: Path, tmp_path: Path) -> None:
    job = harness.write_job(tmp_path, data, tolerate={"bad_steps": 1}, checkpoint={"every": 1, "keep": 99})
    run = tmp_path / "run"
    attempt = start(job, run, 2, inject.poison, 1, 11)
    assert attempt.wait() == [0, 0]
    assert "note: step 11: the loss or a gradient is not finite" in attempt.said(0)
    assert json.loads((run / "result.json").read_text())["refused_steps"] == 1
    assert all(math.isfinite(line["loss"]) for line in harness.history_of(run) if "loss" in line)
    before, after = (harness.weights_of(run, f"step-{step:09d}") for step in (10, 11))
    assert all(before[name].equal(tensor) for name, tensor in after.items())
