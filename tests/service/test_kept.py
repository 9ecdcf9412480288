"""What a run does with the test split: scores it, keeps the logits too, or leaves it unread; and runs that diverge."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from sparta.models.errors import DataError, DivergedError
from sparta.service import build
from sparta.service.auc import auc
from sparta.service.kept import load_kept
from sparta.service.run import RunDirectory
from sparta.service.train import train
from sparta.service.world import world
from tests.pool import Pool
from tests.service import toys


def run_job(rank: int, ranks: int, job: Any, run: Path) -> tuple[dict[str, Any], list[str]]:
    """The result, and the splits that were read, once for each time."""
    read: list[str] = []
    loader_of = build.scoring_loader

    def counted(folder: Any, of: Any, split: str, *arguments: Any, **more: Any) -> Any:
        loader = loader_of(folder, of, split, *arguments, **more)
        epoch = loader.epoch

        def counting(number: int) -> Any:
            read.append(split)
            return epoch(number)

        loader.epoch = counting
        return loader

    build.scoring_loader = counted
    try:
        with world("cpu") as here:
            result = train(job, RunDirectory(run), here)
            assert result is not None
            return result, read
    finally:
        build.scoring_loader = loader_of


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_kept_logits_are_those_that_were_scored_in_the_order_of_the_rows(
    pool: Pool, data: Path, tmp_path: Path, ranks: int
) -> None:
    job = toys.job_of(data, train={"ranks": ranks, "test": "kept", "epochs": 1})
    result, read = pool.run(ranks, run_job, job, tmp_path / "run")[0]
    assert read.count("test") == 1
    logits, labels, weights = load_kept(tmp_path / "run" / "scores")
    raw = pq.read_table(data.parent / "raw" / "test.parquet")["click"].to_numpy()
    np.testing.assert_array_equal(labels[:, 0], raw)
    np.testing.assert_array_equal(weights, 1.0)
    found = auc(logits[:, 0], labels[:, 0] > 0.5, weights)
    assert found == pytest.approx(result["eval"]["test"]["click"]["auc"], abs=1e-6)


def test_what_is_unread_need_not_even_be_there(pool: Pool, tmp_path: Path) -> None:
    data = toys.write_dataset(tmp_path / "toy")
    for part in (data / "test").iterdir():
        part.unlink()
    job = toys.job_of(data, train={"test": "unread", "epochs": 1})
    result, read = pool.run(1, run_job, job, tmp_path / "run")[0]
    assert set(result["eval"]) == set(read) == {"valid"}
    assert not (tmp_path / "run" / "scores").exists()


def test_scores_are_kept_only_if_they_are_asked_for(pool: Pool, data: Path, tmp_path: Path) -> None:
    result, read = pool.run(1, run_job, toys.job_of(data, train={"epochs": 1}), tmp_path / "run")[0]
    assert read.count("test") == 1
    assert "test" in result["eval"]
    with pytest.raises(DataError, match=r"holds no scores; a run keeps them with --set train\.test=kept"):
        load_kept(tmp_path / "run" / "scores")


def diverge(rank: int, ranks: int, job: Any, run: Path) -> tuple[str, str]:
    with world("cpu") as here, pytest.raises(DivergedError) as refused:
        train(job, RunDirectory(run), here)
    return str(refused.value), (run / "DIVERGED").read_text()


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_that_diverges_leaves_word_of_it(pool: Pool, data: Path, tmp_path: Path, ranks: int) -> None:
    wild = {"tables": {"name": "sgd", "lr": 1e30}, "dense": {"name": "sgd", "lr": 1e30}}
    job = toys.job_of(data, optim=wild, train={"ranks": ranks})
    found = pool.run(ranks, diverge, job, tmp_path / "run")
    assert len({said for said, _ in found}) == 1
    assert "not finite" in found[0][0]
    assert found[0][1] == found[0][0] + "\n"
    assert not (tmp_path / "run" / "result.json").exists()
