"""The jobs for real data, cut short: a fraction of the training already ranks well above chance.

The data is not ours to ship. It is looked for in ${SPARTA_DATA}, else in ../shared/data beside the project.
"""

import os
from pathlib import Path

import pytest

from sparta.service.config import load_job
from sparta.service.data.prepare import prepare
from sparta.service.data.spec import load_spec
from tests.pool import Pool
from tests.service.test_train import run_job

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("SPARTA_DATA", ROOT.parent / "shared" / "data"))
JOBS = ROOT / "launcher" / "jobs"


@pytest.mark.parametrize(
    "name, steps, least_auc",
    [("census_income", 60, 0.935), ("anime", 40, 0.80), ("criteo_tb80k", 24, 0.65)],
)
def test_a_short_training_on_two_ranks_ranks_well(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, steps: int, least_auc: float
) -> None:
    if not (DATA / name).is_dir():
        pytest.skip(f"{DATA / name} is not there; set SPARTA_DATA to the folder that holds {name}/")
    monkeypatch.setenv("SPARTA_DATA", str(DATA))
    schema = prepare(load_spec(str(JOBS / f"{name}.prepare.yaml"), []), tmp_path / "data", progress=False)
    overrides = [
        f"data.path={tmp_path / 'data'}",
        f"train.max_steps={steps}",
        f"train.evaluate_every={steps}",
    ]
    job = load_job(JOBS / f"{name}.yaml", overrides)
    result = pool.run(2, run_job, job, tmp_path / "run")[0]
    (label,) = schema.labels
    assert result["steps"] == steps
    assert result["eval"]["test"][label]["auc"] > least_auc
