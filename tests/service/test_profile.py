"""`--profile`: what it writes, that it looks at the steps it was told, and that it changes nothing."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sparta.models.errors import ConfigError
from sparta.service.config import Job
from sparta.service.profile import steps_of
from sparta.service.run import RunDirectory
from sparta.service.train import train
from sparta.service.world import world
from tests.pool import Pool
from tests.service import toys
from tests.service.refusal import sparta
from tests.service.test_ascent import losses

HELEN = {"tables": {"name": "helen", "lr": 0.01}}


def profiled(rank: int, ranks: int, job: Job, run: Path, steps: tuple[int, int] | None) -> Any:
    with world("cpu") as here:
        return train(job, RunDirectory(run), here, profile=steps)


def ranges(run: Path, rank: int) -> Counter[str]:
    """How often each name stands in a rank's trace."""
    with gzip.open(run / "profile" / f"rank-{rank}.trace.json.gz", "rt") as file:
        events = json.load(file)["traceEvents"]
    return Counter(event["name"] for event in events if event.get("cat") == "user_annotation")


def test_the_steps_are_cut_into_phases_on_every_rank_and_learn_the_same(
    pool: Pool, data: Path, tmp_path: Path
) -> None:
    job = toys.job_of(data, optim=HELEN, train={"max_steps": 12})
    pool.run(2, profiled, job, tmp_path / "plain", None)
    pool.run(2, profiled, job, tmp_path / "looked", (3, 7))
    assert losses(tmp_path / "looked") == losses(tmp_path / "plain")
    assert not (tmp_path / "plain" / "profile").exists()
    for rank in range(2):
        found = ranges(tmp_path / "looked", rank)
        assert {
            found[phase] for phase in ("ascend", "second_pass", "optimizer", "data_wait", "input_dist")
        } == {5}
        table = (tmp_path / "looked" / "profile" / f"rank-{rank}.txt").read_text().split("\n\n")[0]
        lines = {line[:16].strip(): line[16:].split() for line in table.splitlines()}
        means = [float(line[0]) for name, line in lines.items() if name not in ("phase", "5 steps")]
        assert sum(means) == pytest.approx(float(lines["5 steps"][0]), abs=0.05)
        shares = [float(line[2].rstrip("%")) for line in lines.values() if line[-1].endswith("%")]
        assert sum(shares) == pytest.approx(100, abs=0.5)


def test_a_training_that_ends_earlier_is_told_as_far_as_it_went(
    pool: Pool, data: Path, tmp_path: Path
) -> None:
    job = toys.job_of(data, optim=HELEN, train={"max_steps": 5})
    pool.run(1, profiled, job, tmp_path / "cut", (4, 90))
    assert ranges(tmp_path / "cut", 0)["optimizer"] == 2
    for steps in ((6, 9), (7, 9)):
        run = tmp_path / str(steps[0])
        pool.run(1, profiled, job, run, steps)
        assert not (run / "profile").exists()
        assert len(losses(run)) == 5


def test_evaluations_and_saves_are_told_apart(pool: Pool, data: Path, tmp_path: Path) -> None:
    job = toys.job_of(data, optim=HELEN, train={"max_steps": 6, "evaluate_every": 3}, checkpoint={"every": 2})
    pool.run(1, profiled, job, tmp_path / "run", (2, 5))
    found = ranges(tmp_path / "run", 0)
    # After steps 2, 3 and 4; what follows step 5 is not looked at.
    assert (found["eval"], found["optimizer"]) == (1, 4)
    assert found["checkpoint"] >= 2
    table = (tmp_path / "run" / "profile" / "rank-0.txt").read_text()
    assert {"eval", "checkpoint", "between"} <= {
        line.split()[0] for line in table.split("\n\n")[0].splitlines()
    }


def test_a_resumed_training_says_from_where_it_looked(data: Path, tmp_path: Path) -> None:
    job = toys.job_file(tmp_path, data, optim=HELEN)
    run = ("train", job, "--run-dir", tmp_path / "run", "--ranks", "1")
    assert sparta(*run, "--set", "train.max_steps=3")[0] == 0
    code, _, said = sparta(*run, "--resume", "--set", "train.max_steps=6", "--profile", "2-5")
    assert code == 0
    assert f"profile of steps 4 to 5: {tmp_path}/run/profile/rank-0.txt" in said

    code, _, said = sparta(*run, "--resume", "--set", "train.max_steps=7", "--profile", "2-6")
    assert code == 0
    assert "note: --profile 2-6: nothing to look at, training goes on after step 6" in said


@pytest.mark.parametrize("text", ["20", "0-4", "5-4", "a-b", "3-", "1-2-3"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=f"--profile {text}: not FIRST-LAST"):
        steps_of(text)


def test_a_range_of_one_step() -> None:
    assert steps_of("7-7") == (7, 7)
