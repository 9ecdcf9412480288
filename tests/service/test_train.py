"""Whole runs: the number of ranks changes nothing, the best weights come back, files say what happened."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sparta.models.batch import Batch
from sparta.models.dnn import DNN
from sparta.models.embedding import Embeddings, Inputs
from sparta.models.errors import ConfigError
from sparta.models.schema import load_schema
from sparta.service.check import check
from sparta.service.config import Job
from sparta.service.data.prepare import encode_file, prepare
from sparta.service.data.spec import load_spec
from sparta.service.predict import predict, strangers
from sparta.service.run import RunDirectory
from sparta.service.train import score, train, trained
from sparta.service.world import world
from tests.pool import Pool
from tests.service import toys


def run_job(rank: int, ranks: int, job: Job, run: Path) -> dict[str, Any]:
    with world("cpu") as here:
        return train(job, RunDirectory(run), here)


def run_evaluation(rank: int, ranks: int, run: Path, which: str | None, split: str) -> dict[str, Any]:
    with world("cpu") as here:
        job = RunDirectory(run).read_job()
        schema, sharded = trained(RunDirectory(run), job, here, which)
        return dict(score(job, schema, sharded, here, split))


def run_prediction(rank: int, ranks: int, run: Path, raw: Path, out: Path) -> int:
    with world("cpu") as here:
        job = RunDirectory(run).read_job()
        schema, sharded = trained(RunDirectory(run), job, here)
        return predict(job, schema, sharded, here, raw, out)


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in toys.history(run) if "loss" in line]


@pytest.fixture(scope="module")
def finished(pool: Pool, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run on 2 ranks with everything on."""
    run = tmp_path_factory.mktemp("runs") / "two"
    job = toys.job_of(
        data, train={"ranks": 2, "epochs": 3, "gauc_by": "user", "early_stop": {"metric": "logloss"}}
    )
    return run, pool.run(2, run_job, job, run)[0]


@pytest.mark.parametrize("ranks", [1, 4])
def test_the_number_of_ranks_changes_nothing(
    pool: Pool, data: Path, finished: tuple[Path, dict[str, Any]], tmp_path: Path, ranks: int
) -> None:
    job = toys.job_of(
        data, train={"ranks": ranks, "epochs": 3, "gauc_by": "user", "early_stop": {"metric": "logloss"}}
    )
    results = pool.run(ranks, run_job, job, tmp_path / "run")
    assert all(result["eval"] == results[0]["eval"] for result in results)
    run, expected = finished
    np.testing.assert_allclose(losses(tmp_path / "run")[:20], losses(run)[:20], rtol=1e-5)
    assert results[0]["examples"] == expected["examples"] == 3 * toys.ROWS["train"]
    assert results[0]["eval"]["test"]["click"]["auc"] == pytest.approx(
        expected["eval"]["test"]["click"]["auc"], abs=2e-3
    )


def test_a_model_learns_and_its_files_agree(finished: tuple[Path, dict[str, Any]]) -> None:
    run, result = finished
    assert result["eval"]["test"]["click"]["auc"] > 0.68
    assert json.loads((run / "result.json").read_text())["eval"] == result["eval"]
    lines = toys.history(run)
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 49))
    assert [line["epoch"] for line in steps] == [0] * 16 + [1] * 16 + [2] * 16
    assert steps[-1]["examples"] == 6000
    evaluations = [line for line in lines if line.get("eval") == "valid"]
    assert [line["step"] for line in evaluations] == [16, 32, 48]
    assert {"auc", "gauc", "logloss", "ne", "calibration"} <= set(evaluations[0])
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((run / "plan.json").read_text())["ranks"] == 2


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_evaluate_gives_the_result_of_training_on_any_number_of_ranks(
    pool: Pool, finished: tuple[Path, dict[str, Any]], ranks: int
) -> None:
    run, result = finished
    for split in ("valid", "test"):
        again = pool.run(ranks, run_evaluation, run, "best", split)[0]
        for metric, value in result["eval"][split]["click"].items():
            assert again["click"][metric] == pytest.approx(value, abs=1e-6), metric


@pytest.mark.parametrize("ranks", [1, 2])
def test_predictions_are_in_the_order_of_the_rows_and_give_the_metrics_of_evaluate(
    pool: Pool, data: Path, finished: tuple[Path, dict[str, Any]], tmp_path: Path, ranks: int
) -> None:
    run, result = finished
    raw = data.parent / "raw" / "test.parquet"
    assert pool.run(ranks, run_prediction, run, raw, tmp_path / "p.parquet")[0] == toys.ROWS["test"]
    scores = pq.read_table(tmp_path / "p.parquet").column("click").to_numpy()
    labels = pq.read_table(raw).column("click").to_numpy()
    assert scores.dtype == np.float32
    logloss = -np.mean(np.where(labels == 1, np.log(scores), np.log1p(-scores)))
    assert logloss == pytest.approx(result["eval"]["test"]["click"]["logloss"], abs=1e-6)
    assert list(tmp_path.iterdir()) == [tmp_path / "p.parquet"]
    with pytest.raises(AssertionError, match="exists already"):
        pool.run(1, run_prediction, run, raw, tmp_path / "p.parquet")


def test_rows_without_labels_can_be_scored(
    pool: Pool, finished: tuple[Path, dict[str, Any]], data: Path, tmp_path: Path
) -> None:
    raw = pq.read_table(data.parent / "raw" / "test.parquet").drop_columns(["click"])
    pq.write_table(raw, tmp_path / "raw.parquet")
    rows = pool.run(1, run_prediction, finished[0], tmp_path / "raw.parquet", tmp_path / "p.parquet")[0]
    assert rows == raw.num_rows


def test_early_stopping_restores_the_best_weights(pool: Pool, data: Path, tmp_path: Path) -> None:
    job = toys.job_of(
        data,
        optim={"tables": {"name": "adagrad", "engine": "fbgemm", "lr": 2.0}, "dense": {"lr": 0.05}},
        train={"epochs": 20, "early_stop": {"metric": "logloss", "patience": 1}},
        checkpoint={"keep": 1},
    )
    result = pool.run(1, run_job, job, tmp_path / "run")[0]
    evaluations = [line for line in toys.history(tmp_path / "run") if line.get("eval") == "valid"]
    best = min(evaluations, key=lambda line: line["logloss"])
    assert result["stopped_early"]
    assert result["steps"] == best["step"] + 2 * 16 == evaluations[-1]["step"]
    assert result["best_step"] == best["step"]
    assert result["eval"]["valid"]["click"]["logloss"] == pytest.approx(best["logloss"], abs=1e-6)
    last = pool.run(1, run_evaluation, tmp_path / "run", "last", "valid")[0]
    assert last["click"]["logloss"] == pytest.approx(evaluations[-1]["logloss"], abs=1e-6)
    kept = sorted(path.parent.name for path in (tmp_path / "run" / "checkpoints").glob("*/COMMIT"))
    assert kept == [f"step-{best['step']:09d}", f"step-{result['steps']:09d}"]


def test_a_lower_rate_changes_the_run_from_the_step_it_is_due(pool: Pool, data: Path, tmp_path: Path) -> None:
    plain = toys.job_of(data, train={"max_steps": 8})
    warm = toys.job_of(data, train={"max_steps": 8}, optim={"schedule": {"warmup": 4}})
    pool.run(1, run_job, plain, tmp_path / "plain")
    pool.run(1, run_job, warm, tmp_path / "warm")
    assert losses(tmp_path / "plain")[0] == losses(tmp_path / "warm")[0]
    assert losses(tmp_path / "plain")[1] != losses(tmp_path / "warm")[1]
    assert toys.history(tmp_path / "warm")[-1]["step"] == 8


def test_the_plateau_lowers_the_rate_after_the_first_evaluation_that_gains_nothing(
    pool: Pool, data: Path, tmp_path: Path
) -> None:
    wild = {"tables": {"name": "sgd", "lr": 5.0}, "dense": {"lr": 0.05}}
    often = {"evaluate_every": 2, "epochs": 3}
    pool.run(1, run_job, toys.job_of(data, optim=wild, train=often), tmp_path / "plain")
    wild["plateau"] = {"metric": "auc"}
    pool.run(1, run_job, toys.job_of(data, optim=wild, train=often), tmp_path / "plateau")
    best, stalled = 0.0, 0
    for line in toys.history(tmp_path / "plain"):
        if "eval" in line and not stalled:
            best, stalled = (line["auc"], 0) if line["auc"] > best else (best, line["step"])
    assert 0 < stalled < 46
    # The step after the evaluation still reads the same weights; the one after that does not.
    plain, plateau = losses(tmp_path / "plain"), losses(tmp_path / "plateau")
    assert plain[: stalled + 1] == plateau[: stalled + 1]
    assert plain[stalled + 1] != plateau[stalled + 1]


def test_a_second_run_in_the_same_directory_is_refused_and_the_first_one_kept(
    pool: Pool, data: Path, finished: tuple[Path, dict[str, Any]]
) -> None:
    run, _ = finished
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(AssertionError, match="already holds a run"):
        pool.run(2, run_job, toys.job_of(data, train={"ranks": 2}), run)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_negatives_that_were_dropped_are_corrected_for(pool: Pool, data: Path, tmp_path: Path) -> None:
    """Declaring that half the negatives were dropped from train halves the odds elsewhere."""
    plain = pool.run(1, run_job, toys.job_of(data), tmp_path / "plain")[0]
    job = toys.job_of(data, data={"negatives": {"kept": 0.5, "splits": ["train", "valid"]}})
    halved = pool.run(1, run_job, job, tmp_path / "halved")[0]
    raw = data.parent / "raw" / "test.parquet"
    odds = []
    for name in ("plain", "halved"):
        pool.run(1, run_prediction, tmp_path / name, raw, tmp_path / f"{name}.parquet")
        p = pq.read_table(tmp_path / f"{name}.parquet").column("click").to_numpy().astype(np.float64)
        odds.append(p / (1 - p))
    np.testing.assert_allclose(odds[1], odds[0] / 2, rtol=1e-4)
    assert halved["eval"]["valid"] == plain["eval"]["valid"]
    assert halved["eval"]["test"]["click"]["calibration"] < plain["eval"]["test"]["click"]["calibration"]


def test_a_checkpoint_without_commit_is_none(pool: Pool, data: Path, tmp_path: Path) -> None:
    pool.run(1, run_job, toys.job_of(data, train={"max_steps": 4}), tmp_path / "run")
    for commit in (tmp_path / "run" / "checkpoints").glob("*/COMMIT"):
        commit.unlink()
    with pytest.raises(AssertionError, match="DataError"):
        pool.run(1, run_evaluation, tmp_path / "run", "last", "test")


def test_errors_of_one_rank_reach_the_others(pool: Pool) -> None:
    assert set(pool.run(2, refused_once)) == {"only here"}


def refused_once(rank: int, ranks: int) -> str:
    def refuse() -> None:
        raise ConfigError("only here")

    with world("cpu") as here:
        try:
            here.once(refuse)
        except ConfigError as error:
            return str(error)
    return "nothing"


def test_a_world_of_one_needs_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with world("cpu") as here:
        assert (here.rank, here.ranks, here.first) == (0, 1, True)
        assert here.once(lambda: 3) == 3
    assert not torch.distributed.is_initialized()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.device"), world("cuda"):
        pass


def test_a_run_is_not_scored_with_another_vocabulary(pool: Pool, tmp_path: Path) -> None:
    """Prepared again from other rows the tables may have the same sizes, but ids mean other values."""
    data = toys.write_dataset(tmp_path)
    pool.run(1, run_job, toys.job_of(data, train={"max_steps": 2}), tmp_path / "run")
    spec = load_spec(str(tmp_path / "raw" / "spec.yaml"), [])
    prepare(spec, data, progress=False, overwrite=True)
    pool.run(1, run_evaluation, tmp_path / "run", "last", "test")  # the same rows: the same dataset
    pq.write_table(toys.raw_table(toys.ROWS["train"], 77), tmp_path / "raw" / "train.parquet")
    before = load_schema(data)
    assert prepare(spec, data, progress=False, overwrite=True).columns == before.columns
    with pytest.raises(AssertionError, match="prepared anew"):
        pool.run(1, run_evaluation, tmp_path / "run", "last", "test")
    raw = tmp_path / "raw" / "test.parquet"
    with pytest.raises(AssertionError, match="prepared anew"):
        pool.run(1, run_prediction, tmp_path / "run", raw, tmp_path / "p.parquet")


def test_without_early_stopping_evaluate_gives_the_result_too(pool: Pool, data: Path, tmp_path: Path) -> None:
    job = toys.job_of(
        data, optim={"tables": {"name": "adagrad", "engine": "fbgemm", "lr": 2.0}}, train={"epochs": 3}
    )
    result = pool.run(1, run_job, job, tmp_path / "run")[0]
    again = pool.run(1, run_evaluation, tmp_path / "run", None, "test")[0]
    assert result["weights"] == "last"
    assert again["click"]["logloss"] == pytest.approx(result["eval"]["test"]["click"]["logloss"], abs=1e-6)


class Apart(DNN):
    """A model that keeps its first-order tables in a collection of their own."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__(inputs, hidden=(8,))
        self.first = Embeddings(inputs, deep=False, wide=True)

    def forward(self, batch: Batch) -> torch.Tensor:
        return super().forward(batch) + self.first(batch).wide().sum(1, keepdim=True)


def test_a_model_may_keep_its_tables_in_several_places(pool: Pool, data: Path, tmp_path: Path) -> None:
    model = {"name": "tests.service.test_train:Apart", "args": {}}
    job = toys.job_of(data, model=model, train={"ranks": 2, "max_steps": 4})
    assert "6 tables" in check(job)[0]
    pool.run(2, run_job, job, tmp_path / "run")
    assert len(losses(tmp_path / "run")) == 4


def test_values_the_model_does_not_know_are_told(data: Path, tmp_path: Path) -> None:
    raw = pq.read_table(data.parent / "raw" / "test.parquet")
    schema = load_schema(data)
    encode_file(data, schema, data.parent / "raw" / "test.parquet", tmp_path / "same")
    assert strangers(data, schema, tmp_path / "same") == []
    for name in ("colour", "tags"):
        index = raw.column_names.index(name)
        raw = raw.set_column(index, name, pa.array(["mauve"] * raw.num_rows))
    pq.write_table(raw, tmp_path / "raw.parquet")
    encode_file(data, schema, tmp_path / "raw.parquet", tmp_path / "strange")
    assert strangers(data, schema, tmp_path / "strange") == [
        f"{name}: 100% of the values are missing or unknown (0% in training)" for name in ("colour", "tags")
    ]
