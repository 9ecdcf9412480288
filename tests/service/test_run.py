"""What a kill leaves of a run directory."""

from contextlib import closing
from pathlib import Path

import pytest

from sparta.models.schema import load_schema
from sparta.service.run import RunDirectory
from tests.service import toys


@pytest.mark.parametrize("written", [0, 100, None])
def test_a_directory_whose_claim_was_cut_short_is_claimed_again(
    data: Path, tmp_path: Path, written: int | None
) -> None:
    job, run = toys.job_of(data), RunDirectory(tmp_path)
    run.job.write_text(job.dump()[:written])
    elsewhere = toys.job_of(data, train={"ranks": 4})
    assert not run.begun(elsewhere if written is None else job)
    with closing(run.lock):
        run.claim(job, load_schema(data))
    assert run.begun(job)


def test_a_job_file_that_is_not_from_a_claim_of_this_job_is_never_removed(data: Path, tmp_path: Path) -> None:
    job, run = toys.job_of(data), RunDirectory(tmp_path)
    run.job.write_text("# mine\n" + job.dump())
    assert run.begun(job)
    assert run.job.exists()
