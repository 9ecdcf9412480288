"""Checkpoints that were damaged after the fact: the bad one is named and set aside, training goes on."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sparta.service.alone import LOCK
from sparta.service.checkpoint.manifest import FORMAT
from sparta.service.config import load_job
from sparta.service.run import RunDirectory
from tests.faults import harness, inject
from tests.faults.ranks import start


def newest(run: Path) -> Path:
    return sorted((run / "checkpoints").glob("step-*"))[-1]


def truncate(place: Path) -> None:
    """The largest file loses its second half."""
    path = max(place.glob("*.distcp"), key=lambda path: path.stat().st_size)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def flip(place: Path) -> None:
    """One bit in the middle of the largest file, which torch would read without a word."""
    path = max(place.glob("*.distcp"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def gone(name: str) -> Callable[[Path], None]:
    return lambda place: (place / name).unlink()


def garbled(name: str) -> Callable[[Path], None]:
    return lambda place: (place / name).write_bytes((place / name).read_bytes()[:-9])


@pytest.fixture(scope="module")
def halfway(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed after step 11, with complete checkpoints at 8, an evaluation, and 9."""
    folder = tmp_path_factory.mktemp("halfway")
    job = harness.write_job(folder, data, checkpoint={"every": 3, "keep": 2, "background": False})
    assert start(job, folder / "run", 2, inject.at_step, 0, 11).wait()[0] == -9
    return folder / "run"


@pytest.mark.parametrize(
    "damage, words",
    [
        (truncate, "bytes of"),
        (flip, "does not match its checksum"),
        (gone(".metadata"), ".metadata is gone"),
        (gone("MANIFEST.json"), "MANIFEST.json is missing or broken"),
        (garbled("MANIFEST.json"), "MANIFEST.json is not the one that was committed"),
        (garbled("COMMIT"), "COMMIT is missing or broken"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_set_aside(
    job: Path, unkilled: Path, halfway: Path, tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(halfway, run)
    bad = newest(run)
    damage(bad)
    attempt = start(job, run, 2)
    assert attempt.wait() == [0, 0]
    told = [line for line in attempt.said(0).splitlines() if line.startswith("note: ") and bad.name in line]
    assert len(told) == 1
    assert words in told[0]
    assert (run / "checkpoints" / f"damaged-{bad.name}").is_dir()
    assert harness.digests(run) == harness.digests(unkilled)


def test_what_a_killed_save_left_is_removed_and_nothing_complete_with_it(
    job: Path, halfway: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(halfway, run)
    torn = newest(run)
    (torn / "COMMIT").unlink()
    attempt = start(job, run, 2, inject.at_step, 0, 10)
    attempt.wait()
    assert f"{torn}: not complete, removed" in attempt.said(0)
    assert "going on after step 8" in attempt.said(0)


def refused(job: Path, run: Path) -> str:
    """What a resumption says that is refused and leaves all as it was."""
    files = [path for path in run.rglob("*") if path.is_file()]
    # A start says that it is alive, at which ports it answers, and who keeps the directory.
    told = (path for path in files if path.suffix != ".beat" and path.name not in ("metrics.json", LOCK))
    before = {path: path.read_bytes() for path in told}
    attempt = start(job, run, 2)
    assert attempt.wait() == [3, 3]
    after = {path: path.read_bytes() for path in before}
    assert after == before
    return attempt.said(0).splitlines()[-1]


def test_a_checkpoint_of_another_format_is_refused_and_not_set_aside(
    job: Path, halfway: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(halfway, run)
    commit = newest(run) / "COMMIT"
    commit.write_text(commit.read_text().replace(f'"format": {FORMAT}', '"format": 9'))
    assert f"{newest(run)}: checkpoint format 9, this sparta reads {FORMAT}; use the sparta" in refused(
        job, run
    )


def test_a_run_whose_checkpoints_are_elsewhere_is_not_begun_anew(
    job: Path, halfway: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(halfway, run)
    (run / "checkpoints").rename(tmp_path / "elsewhere")
    assert "holds no complete checkpoint, but the run has come to step 10" in refused(job, run)


def test_a_finished_run_is_not_begun_anew_however_short_its_history(data: Path, tmp_path: Path) -> None:
    job = harness.write_job(tmp_path, data, train={"max_steps": 5}, checkpoint={"every": 9})
    run = tmp_path / "run"
    assert start(job, run, 2).wait() == [0, 0]
    (run / "checkpoints").rename(tmp_path / "elsewhere")
    assert refused(job, run).endswith(
        f"{run}/checkpoints: holds no complete checkpoint, but the run has finished; see that the storage is there, or "
        f"remove {run}/result.json to begin anew"
    )
    (run / "result.json").unlink()
    assert start(job, run, 2).wait() == [0, 0]


def test_without_the_best_checkpoint_the_last_weights_are_tested(data: Path, tmp_path: Path) -> None:
    wild = {"tables": {"name": "adam", "lr": 2.0}, "dense": {"name": "sgd", "lr": 5.0}}
    job = harness.write_job(
        tmp_path, data, optim=wild, train={"epochs": 3, "evaluate_every": 8, "ranks": 1, "early_stop": {}}
    )
    run = tmp_path / "run"
    assert start(job, run, 1).wait() == [0]
    result = json.loads((run / "result.json").read_text())
    assert result["best_step"] < result["steps"], "the recipe is not wild enough for this test"
    flip(run / "checkpoints" / f"step-{result['best_step']:09d}")
    attempt = start(job, run, 1)
    assert attempt.wait() == [0]
    assert "does not match its checksum" in attempt.said(0)
    assert "the last weights are tested instead" in attempt.said(0)
    again = json.loads((run / "result.json").read_text())
    assert (result["weights"], again["weights"]) == ("best", "last")
    assert RunDirectory(run).tested(load_job(run / "job.yaml")) == "last"  # what `evaluate` takes
