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
