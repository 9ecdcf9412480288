"""One job and the run that nothing happened to."""

from pathlib import Path

import pytest

from tests.faults import harness
from tests.faults.ranks import start
from tests.service.conftest import data

__all__ = ["data"]


@pytest.fixture(scope="session")
def job(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job file for two ranks."""
    return harness.write_job(tmp_path_factory.mktemp("faults"), data)


@pytest.fixture(scope="session")
def unkilled(job: Path) -> Path:
    """Its run directory, after a run without faults; do not change it."""
    run = job.parent / "unkilled"
    assert start(job, run, 2).wait() == [0, 0]
    return run
