"""train.precision: what bfloat16 touches, and that it learns as well."""

from pathlib import Path
from typing import Any

import pytest

from sparta.models import zoo
from tests.pool import Pool
from tests.service import toys
from tests.service.test_ascent import losses, trained_job

ENGINES = [
    {"name": "rowwise_adagrad", "engine": "fbgemm"},
    {"name": "adam", "lr": 0.01},
    {"name": "helen", "lr": 0.01, "rho": 0.05},
]


@pytest.mark.parametrize("tables", ENGINES, ids=lambda tables: tables["name"])
def test_bf16_is_another_training_but_as_good(
    pool: Pool, data: Path, tmp_path: Path, tables: dict[str, Any]
) -> None:
    found = {}
    for precision in ("fp32", "bf16"):
        job = toys.job_of(
            data,
            optim={"tables": tables, "dense": {"lr": 0.01}},
            train={"precision": precision},
        )
        result = pool.run(2, trained_job, job, tmp_path / precision)[0]
        found[precision] = losses(tmp_path / precision), result["eval"]["test"]["click"]["auc"]
    assert found["bf16"][0] != found["fp32"][0]
    assert found["bf16"][1] == pytest.approx(found["fp32"][1], abs=2e-2)  # of 501 test rows


@pytest.mark.parametrize("name", zoo.ZOO)
def test_every_model_rounds_in_bf16_and_no_more(pool: Pool, data: Path, tmp_path: Path, name: str) -> None:
    firsts = {}
    for precision in ("fp32", "bf16"):
        train = {"precision": precision, "max_steps": 2}
        # Small initial rows would leave nothing to round but the loss of a coin.
        job = toys.job_of(data, model={"name": name, "init_std": 0.3}, train=train)
        pool.run(1, trained_job, job, tmp_path / precision)
        firsts[precision] = losses(tmp_path / precision)[0]
    assert firsts["bf16"] != firsts["fp32"]
    assert firsts["bf16"] == pytest.approx(firsts["fp32"], rel=2e-2)
