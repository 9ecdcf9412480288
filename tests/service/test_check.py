"""`check` and `plan`: what they print, and that a saved plan is the one that a run uses."""

import json
from pathlib import Path

import pytest
import torch

from sparta.models.batch import Batch
from sparta.models.dnn import DNN
from sparta.models.errors import ConfigError
from sparta.service.check import check
from tests.service import toys
from tests.service.refusal import refused, sparta

TABLES = ["colour", "user", "tags", "colour.wide", "user.wide", "tags.wide"]


@pytest.fixture
def job(data: Path, tmp_path: Path) -> Path:
    return toys.job_file(tmp_path, data)


def test_check_says_what_the_job_will_do(data: Path, job: Path) -> None:
    code, out, err = sparta("check", job)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    # 13 colours, 41 users and 6 tags with id 0, each 8 wide and 1 wide.
    assert lines[0].endswith(f"6 tables with {60 * 9} weights")
    assert lines[0].startswith("toy: deepfm, ")
    assert lines[1] == f"data: {data}: train 2,000, valid 500, test 501 rows; labels click"
    assert lines[2] == "training: 32 steps, 16 an epoch, of 128 samples on 1 ranks"
    assert lines[3].startswith("plan: 6 table_wise; at most ")
    assert lines[3].endswith("KiB a rank")
    assert lines[4:] == ["ok"]


def test_check_counts_each_placement(data: Path) -> None:
    constraints = {"user": ["row_wise"], "colour": ["column_wise"]}
    lines = check(toys.job_of(data, sharding={"constraints": constraints}, train={"ranks": 2}))
    plan = next(line for line in lines if line.startswith("plan: "))
    for placed in ("3 table_wise", "2 row_wise", "1 column_wise"):
        assert placed in plan


@pytest.mark.parametrize("gpus", [0, 1, 2])
def test_check_plans_for_the_device_of_the_job(data: Path, gpus, monkeypatch) -> None:
    monkeypatch.setattr("sparta.service.check.usable_gpus", lambda: gpus)
    lines = check(toys.job_of(data, optim={"tables": {"name": "adam"}}, train={"device": "cuda", "ranks": 2}))
    lacking = f"ok on a machine with a GPU for each rank: train.device is cuda, and this one has {gpus}"
    assert lines[-1] == ("ok" if gpus == 2 else lacking)


def test_plan_for_eight_gpus_needs_none(job: Path) -> None:
    code, out, err = sparta("plan", job, "--ranks", "8", "--device", "cuda", "--memory-gb", "80")
    assert (code, err) == (0, "")
    assert "8 ranks on cuda, global batch 128" in out
    for table in TABLES:
        assert any(line.split()[1:2] == [table] for line in out.splitlines()), table
    for word in ("placement", "weights", "optimizer", "buffers", "in all", "total", "KiB"):
        assert word in out
    assert "…" not in out
    assert [line.split()[0] for line in out.splitlines() if " total " in line] == [*"01234567"]


def test_a_table_that_does_not_fit_is_named(job: Path, tmp_path: Path) -> None:
    words = ["plan", job, "--memory-gb", "1e-5", "--ranks", "2", "--save", tmp_path / "plan.json"]
    said = refused(tmp_path, *words, code=4)
    assert said.startswith("table ")
    assert said.split()[1] in TABLES
    assert "does not fit" in said
    assert "use more ranks" in said


def test_ranks_that_are_no_whole_nodes(job: Path, tmp_path: Path) -> None:
    said = refused(tmp_path, "plan", job, "--ranks", "8", "--local-ranks", "3", code=4)
    assert said.startswith("8 ranks are no whole number of nodes of 3")


@pytest.mark.parametrize("place", ["nowhere/plan.json", "job.yaml/plan.json", "."])
def test_a_plan_that_cannot_be_saved(job: Path, tmp_path: Path, place: str) -> None:
    said = refused(tmp_path, "plan", job, "--save", tmp_path / place, code=4)
    assert said.startswith(f"{tmp_path / place}: cannot be written")


def test_a_saved_plan_is_the_one_a_run_uses(job: Path, tmp_path: Path) -> None:
    saved = tmp_path / "plan.json"
    constrain = "sharding.constraints={user: [row_wise], colour: [column_wise]}"
    assert sparta("plan", job, "--set", constrain, "--save", saved)[0] == 0
    words = ["train", job, "--set", f"sharding.plan={saved}", "--set", "train.max_steps=2"]
    code, _, err = sparta(*words, "--run-dir", tmp_path / "run")
    assert code == 0, err
    used = json.loads((tmp_path / "run/plan.json").read_text())
    assert used == json.loads(saved.read_text())
    kinds = {table["name"]: table["sharding"] for table in used["tables"]}
    assert (kinds["user"], kinds["colour"], kinds["tags"]) == ("row_wise", "column_wise", "table_wise")
    # The run keeps a plan of its own: it can be evaluated when the saved one is gone.
    saved.unlink()
    assert sparta("evaluate", tmp_path / "run")[0] == 0


class Flat(DNN):
    """Forgets the tasks."""

    def forward(self, batch: Batch) -> torch.Tensor:
        return super().forward(batch).squeeze(1)


class Broken(DNN):
    """Misspells a module."""

    def forward(self, batch: Batch) -> torch.Tensor:
        return self.embedings(batch)  # type: ignore[no-any-return]


def test_a_model_of_ones_own_is_tried_before_anything_starts(data: Path) -> None:
    for name, words in (("Flat", r"gives logits \(3,\)"), ("Broken", r"test_check\.py:\d+ \(AttributeError")):
        job = toys.job_of(data, model={"name": f"tests.service.test_check:{name}", "args": {}})
        with pytest.raises(ConfigError, match=words):
            check(job)


@pytest.mark.parametrize("name", ["dnn", "wide_deep", "pnn", "deepfm", "dcn", "dcn_v2", "dlrm"])
def test_every_model_of_the_zoo_passes(data: Path, name: str) -> None:
    assert check(toys.job_of(data, model={"name": name, "args": {}}))[-1] == "ok"
