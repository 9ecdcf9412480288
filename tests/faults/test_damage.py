"""Checkpoints that were damaged after the fact: the bad one is named and set aside, training goes on."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

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
        (gone(".metadata"), ".metadata is not readable"),
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
