"""Rank 0 or 1 is killed with SIGKILL in every phase of a save; the run goes on as if nothing had happened."""

import signal
from pathlib import Path

import pytest

from sparta.service.checkpoint import store
from sparta.service.checkpoint.manifest import Manifest
from sparta.service.heartbeat import STUCK_CODE
from tests.faults import harness, inject
from tests.faults.ranks import start


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("phase", inject.PHASES)
def test_a_kill_in_any_phase_of_a_save_changes_nothing(
    job: Path, unkilled: Path, tmp_path: Path, phase: str, victim: int
) -> None:
    run = tmp_path / "run"
    # The third save: checkpoints to fall back to are there, and one that is to be dropped.
    attempt = start(job, run, 2, inject.at_phase, victim, phase, 3, 0)
    codes = attempt.wait()
    assert codes[victim] == -9
    assert codes[1 - victim] != 0, "the other rank went on alone"
    assert harness.losses(run) == []
    assert start(job, run, 2).wait() == [0, 0]
    assert harness.digests(run) == harness.digests(unkilled)


def test_a_kill_between_two_saves_changes_nothing(job: Path, unkilled: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (2, 5, 8, 13):  # before the first save, between saves, in the step of an evaluation
        assert start(job, run, 2, inject.at_step, 1, step).wait()[1] == -9
        assert harness.losses(run) == []
    assert start(job, run, 2).wait() == [0, 0]
    assert harness.digests(run) == harness.digests(unkilled)


def test_a_kill_while_the_directory_is_claimed_leaves_no_run(
    job: Path, unkilled: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert start(job, run, 2, inject.in_claim, 0).wait()[0] == -9
    assert (run / "job.yaml").exists()
    assert start(job, run, 2).wait() == [0, 0]
    assert harness.digests(run) == harness.digests(unkilled)


def test_a_save_that_another_rank_has_broken_is_raised_where_it_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is neither complete nor a refusal, after which the launcher would not start the ranks again."""

    def write(*arguments: object, **options: object) -> None:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(store, "write", write)
    checkpoints = store.Checkpoints(tmp_path)
    checkpoints.save({}, Manifest(3, {}))
    with pytest.raises(RuntimeError, match="closed by peer"):
        checkpoints.finish()


def test_a_rank_that_is_stopped_in_a_save_is_named_and_ended(
    data: Path, unkilled: Path, tmp_path: Path
) -> None:
    """All the others have written what is theirs, and wait."""
    sections = {"checkpoint": {"every": 3, "keep": 2, "background": False}, "tolerate": {"stuck_seconds": 2}}
    job = harness.write_job(tmp_path, data, **sections)
    attempt = start(job, tmp_path / "run", 2, inject.at_phase, 1, "data", 2, 1, signal.SIGSTOP)
    assert attempt.wait() == [STUCK_CODE, -signal.SIGKILL]
    assert "rank 1 on " in attempt.said(0)
    assert "no progress for 2 s after step 6 (its process does not run)" in attempt.said(0)
    assert start(job, tmp_path / "run", 2).wait() == [0, 0]
    assert harness.digests(tmp_path / "run") == harness.digests(unkilled)


def test_a_rank_that_dies_early_is_not_blamed_on_the_model(job: Path, tmp_path: Path) -> None:
    attempt = start(job, tmp_path / "run", 2, inject.in_check, 1)
    assert attempt.wait()[0] == 1
    assert "error: model.name" not in attempt.said(0)


def test_a_commit_that_comes_first_is_reported_as_a_loss(job: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    start(job, run, 2, inject.commit_first, inject.at_phase, 0, "data", 3, 0).wait()
    assert any("is committed but" in told for told in harness.losses(run))
