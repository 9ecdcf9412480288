"""Jobs whose tables ascend: on any ranks and plan, by dataset frequencies, in bf16, by SAM and ASAM."""

from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from sparta.service import build
from sparta.service.config import Job
from sparta.service.run import RunDirectory
from sparta.service.train import train
from sparta.service.world import world
from sparta.sharding.tables import tables_of
from tests.pool import Pool
from tests.service import toys


def trained_job(rank: int, ranks: int, job: Job, run: Path) -> dict[str, Any]:
    with world("cpu") as here:
        return train(job, RunDirectory(run), here)


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in toys.history(run) if "loss" in line]


DECAYS = {"weight_decay": 0.5, "l2": 1e-3}
HELEN = {
    "tables": {"name": "helen", "lr": 0.01, "rho": 0.05, "ascend_every": 2, **DECAYS},
    "dense": {"lr": 0.01},
    "schedule": {"decay": "linear"},
}


def test_helen_trains_the_same_on_any_ranks_and_plan(pool: Pool, data: Path, tmp_path: Path) -> None:
    found = []
    for ranks, sharding in ((1, "table_wise"), (2, "row_wise"), (4, "data_parallel")):
        constraints = {name: [sharding] for name in ("user", "colour")}
        job = toys.job_of(data, optim=HELEN, sharding={"constraints": constraints}, train={"ranks": ranks})
        run = tmp_path / sharding
        result = pool.run(ranks, trained_job, job, run)[0]
        found.append((losses(run), result["eval"]["test"]["click"]["auc"], result["most_frequent"]))
    for curve, auc, frequent in found[1:]:
        np.testing.assert_allclose(curve[:20], found[0][0][:20], rtol=1e-5)
        assert auc == pytest.approx(found[0][1], abs=2e-3)
        assert frequent == found[0][2]
    assert set(found[0][2]) >= {"user", "colour"}


def test_an_ascent_in_bf16_is_another_but_as_good(pool: Pool, data: Path, tmp_path: Path) -> None:
    found: dict[str, list[float]] = {"fp32": [], "bf16": []}
    # Of one seed AUCs differ by .004 (deviation), and by other numbers on a processor that rounds otherwise.
    for seed, precision in product(range(6), found):
        tables = {"name": "helen", "lr": 0.01, "rho": 0.05, "ascend_precision": precision}
        job = toys.job_of(data, optim={"tables": tables, "dense": {"lr": 0.01}}, train={"seed": seed})
        result = pool.run(1, trained_job, job, tmp_path / f"{precision}-{seed}")[0]
        found[precision].append(result["eval"]["test"]["click"]["auc"])
    assert losses(tmp_path / "bf16-0") != losses(tmp_path / "fp32-0")
    assert fmean(found["bf16"]) == pytest.approx(fmean(found["fp32"]), abs=5e-3)


def test_a_table_may_decay_in_its_own_way(data: Path) -> None:
    job = toys.job_of(data, optim=HELEN, tables={"colour": {"weight_decay": 0.0}, "user": {"l2": 0.25}})
    chosen = build.table_optimizers(job, tables_of(build.model(job, build.schema(job))))
    found = {name: (one.weight_decay, one.l2) for name, one in chosen.items()}
    assert (found["colour"], found["user"], found["tags"]) == ((0.0, 1e-3), (0.5, 0.25), (0.5, 1e-3))


def test_frequencies_of_the_dataset_are_those_of_its_rows(data: Path) -> None:
    helen = {"name": "helen", "lr": 0.01, "frequency": "dataset"}
    job = toys.job_of(data, optim={"tables": helen}, tables={"colour": {"optimizer": "adam"}})
    schema = build.schema(job)
    counts = build.row_counts(job, tables_of(build.model(job, schema)))
    assert "user" in counts
    assert "colour" not in counts
    for name, of_rows in counts.items():
        feature = schema.feature(name.removesuffix(".wide"))
        ids = pq.read_table(data / "train", columns=[feature.name])[feature.name].combine_chunks()
        flat = (ids.flatten() if feature.multi else ids).to_numpy()
        assert of_rows.tolist() == np.bincount(flat, minlength=feature.rows).tolist()


@pytest.mark.parametrize("name", ["sam", "asam"])
def test_dense_parameters_have_the_radius_of_the_job(
    pool: Pool, data: Path, tmp_path: Path, name: str
) -> None:
    """Also where a table has a radius of its own."""
    tables = {"name": name, "lr": 0.01, "rho": 0.05}
    job = toys.job_of(data, optim={"tables": tables, "dense": {"lr": 0.01}}, tables={"colour": {"rho": 0.1}})
    result = pool.run(1, trained_job, job, tmp_path / "run")[0]
    assert result["eval"]["test"]["click"]["auc"] > 0.68
    assert "most_frequent" not in result
