"""A slot that was told to stop."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sparta.models.errors import SpartaError
from sparta.service.compare import worker
from sparta.service.run import RunDirectory
from tests.service import toys


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    yield
    worker._told.clear()
    worker._here.clear()
    worker._open.close()


@pytest.mark.parametrize(
    ("given", "found"), [(None, ["0", "1", "0"]), ("5,GPU-7", ["5", "GPU-7", "5"]), ("", ["0", "1", "0"])]
)
def test_slots_share_the_gpus_each_with_one_for_itself(
    given: str | None, found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(worker.VISIBLE, raising=False)
    if given is not None:
        monkeypatch.setenv(worker.VISIBLE, given)
    assert [worker.visible(slot, 2) for slot in range(3)] == found


def test_it_takes_up_no_other_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool's next piece of work is with the slot before anybody can cancel it."""
    asked: list[Path] = []

    def stopped(job: object, run: RunDirectory, here: object, *, resume: bool) -> None:
        asked.append(run.path)

    monkeypatch.setattr(worker, "train", stopped)
    job = toys.job_file(tmp_path, tmp_path)
    for name in ("one", "two"):
        with pytest.raises(
            SpartaError, match=f"{name}: its slot was told to stop; run it again, and it goes on"
        ):
            worker.run(job, [], tmp_path / name)
    assert asked == [tmp_path / "one"]
