"""A killed run goes on elsewhere: on other ranks, under another plan, from checkpoints behind a URL."""

import shutil
from pathlib import Path

import pytest

from tests.faults import harness, inject
from tests.faults.ranks import start

ROW_WISE = {"sharding": {"constraints": {name: ["row_wise"] for name in ("colour", "user", "tags")}}}
COLUMN_WISE = {"sharding": {"constraints": {"user": ["column_wise"], "colour": ["data_parallel"]}}}


@pytest.fixture(scope="module")
def killed(job: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two ranks, killed after step 11."""
    run = tmp_path_factory.mktemp("killed") / "run"
    assert start(job, run, 2, inject.at_step, 0, 11).wait()[0] == -9
    return run


@pytest.mark.parametrize("ranks, sections", [(1, {}), (4, ROW_WISE), (2, COLUMN_WISE)])
def test_on_other_ranks_and_plans_the_losses_are_the_same(
    data: Path,
    unkilled: Path,
    killed: Path,
    tmp_path: Path,
    ranks: int,
    sections: dict[str, dict[str, object]],
) -> None:
    run = tmp_path / "run"
    shutil.copytree(killed, run)
    attempt = start(harness.write_job(tmp_path, data, **sections), run, ranks)
    assert attempt.wait() == [0] * ranks, attempt.said(0)
    found, expected = harness.history_of(run), harness.history_of(unkilled)
    assert len(found) == len(expected)
    for line, other in zip(found, expected, strict=True):
        assert line.keys() == other.keys()
        assert line.pop("eval", None) == other.pop("eval", None)
        assert line == pytest.approx(other, rel=1e-5, abs=1e-5)  # steps and samples are whole numbers


def test_checkpoints_behind_a_url_are_as_good(data: Path, unkilled: Path, tmp_path: Path) -> None:
    run, folder = tmp_path / "run", tmp_path / "elsewhere"
    job = harness.write_job(tmp_path, data, checkpoint={"every": 3, "keep": 2, "path": f"local://{folder}"})
    assert start(job, run, 2, inject.at_step, 1, 12).wait()[1] == -9
    assert list(folder.glob("step-*/COMMIT"))
    attempt = start(job, run, 2)
    assert attempt.wait() == [0, 0]
    assert "going on after step " in attempt.said(0)
    assert harness.history_of(run) == harness.history_of(unkilled)
    attempt = start(job, tmp_path / "another", 2)  # which would take these checkpoints for its own
    assert attempt.wait() == [2, 2]
    assert f"local://{folder}: holds checkpoints of another run; give this one" in attempt.said(0)
    assert not (tmp_path / "another" / "job.yaml").exists()
