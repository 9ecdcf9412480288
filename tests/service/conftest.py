"""The small data set, prepared once, and a run on it."""

from pathlib import Path

import pytest

from sparta.service.run import RunDirectory
from sparta.service.train import train
from sparta.service.world import world
from tests.pool import Pool
from tests.service import toys


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared dataset; do not change it."""
    return toys.write_dataset(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def learned(pool: Pool, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of Helen on two ranks, with checkpoints of its best and its last steps; do not change it."""
    run = tmp_path_factory.mktemp("learned") / "run"
    pool.run(2, learn, data, run)
    return run


def learn(rank: int, ranks: int, data: Path, run: Path) -> None:
    job = toys.job_of(
        data,
        optim={"tables": {"name": "helen", "lr": 0.02, "rho": 0.05}},
        train={"ranks": ranks, "epochs": 3, "evaluate_every": 8, "early_stop": {"patience": 9}},
        checkpoint={"every": 12, "keep": 2},
    )
    with world("cpu") as here:
        train(job, RunDirectory(run), here)
