"""A run goes on with its own job and data only, and with all that drew random numbers as it was."""

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparta.models.errors import ConfigError, DataError
from sparta.models.schema import load_schema
from sparta.service.checkpoint.manifest import Manifest
from sparta.service.checkpoint.store import Checkpoints
from sparta.service.config import Job
from sparta.service.resume import (
    MAY_CHANGE,
    changes,
    check_resumable,
    circumstances,
    fits,
    random_state,
    set_random_state,
)
from sparta.service.run import RunDirectory
from sparta.service.world import World, world
from tests.pool import Pool
from tests.service import toys

FREE = [
    "data.path=/elsewhere",
    "data.prefetch=9",
    "sharding.memory_gb=3",
    "sharding.constraints={user: [row_wise]}",
    "data.watch.folder=/elsewhere",
    "data.watch.poll_seconds=9",
    "data.watch.idle_seconds=9",
    "data.watch.settle_seconds=9",
    "train.ranks=4",
    "train.device=cpu",
    "train.epochs=9",
    "train.max_steps=3",
    "train.test=unread",
    "train.log_every=7",
    "checkpoint.every=2",
    "checkpoint.keep=9",
    "checkpoint.background=false",
    "checkpoint.grace_seconds=99",
    "tolerate.bad_rows=5",
    "tolerate.stuck_seconds=5",
    "metrics.port=9000",
    "kubernetes.shm_gb=2",
]
BOUND = [
    "name=other",
    "data.batch_size=64",
    "data.streams=8",
    "data.negatives={kept: 0.5}",
    "model.embedding_dim=4",
    "model.args.dropout=0.5",
    "optim.tables.lr=0.5",
    "optim.tables.engine=fbgemm",
    "optim.dense.lr=0.5",
    "optim.schedule.warmup=4",
    "tables.user.lr=0.5",
    "train.seed=2",
    "train.evaluate_every=9",
    "train.early_stop.patience=3",
    "train.gauc_by=user",
    "checkpoint.path=/elsewhere",
]


def test_every_key_that_may_change_is_tried() -> None:
    for key in MAY_CHANGE:
        assert any(edit.startswith((f"{key}=", f"{key}.")) for edit in FREE), key
        assert not any(edit.startswith((f"{key}=", f"{key}.")) for edit in BOUND), key


@pytest.mark.parametrize("edit", FREE)
def test_what_leaves_the_samples_as_they_are_may_change(
    learned: Path, data: Path, tmp_path: Path, edit: str
) -> None:
    run = RunDirectory(learned)
    if edit.startswith("data.watch."):
        shutil.copytree(learned, tmp_path / "watching", ignore=shutil.ignore_patterns("checkpoints"))
        watching = run.read_job(["train.epochs=1", "data.watch.folder=/here"]).dump()
        run = RunDirectory(tmp_path / "watching")
        (run.path / "job.yaml").write_text(watching)
    check_resumable(run, run.read_job([edit]), load_schema(data))


@pytest.mark.parametrize("edit", BOUND)
def test_any_other_key_is_refused_by_name_with_both_values(learned: Path, data: Path, edit: str) -> None:
    run = RunDirectory(learned)
    if "engine=fbgemm" in edit:
        edit = "optim.tables={name: rowwise_adagrad, engine: fbgemm}"
    with pytest.raises(ConfigError) as error:
        check_resumable(run, run.read_job([edit, "train.epochs=9"]), load_schema(data))
    said = str(error.value)
    assert said.startswith(f"{learned}: {edit.partition('=')[0].partition('.')[0]}")
    assert " was " in said
    assert ", the job says " in said
    assert said.endswith(
        f"resume with the job of the run, or start another from its weights: --from {learned} --run-dir DIR"
    )
    assert "\n" not in said


@pytest.mark.parametrize(
    "change, words",
    [
        ({"splits": {"train": 9}}, "was trained on 2000 rows, the dataset has 9; resume on the same rows"),
        ({"fingerprint": "other"}, "the dataset was prepared anew since this run was trained"),
    ],
)
def test_other_rows_are_refused(learned: Path, data: Path, change: dict[str, Any], words: str) -> None:
    run = RunDirectory(learned)
    with pytest.raises(DataError, match=words):
        check_resumable(run, run.read_job(), load_schema(data).model_copy(update=change))


def draws() -> list[Any]:
    """One number of each generator."""
    return [random.random(), float(np.random.random()), float(torch.rand(()))]


def test_generators_go_on_where_they_were() -> None:
    draws()
    state = random_state(3)["rng/3"]
    expected = [draws(), draws()]
    set_random_state(state)
    assert [draws(), draws()] == expected


def saved_draws(rank: int, ranks: int, folder: Path) -> tuple[list[Any], list[Any]]:
    """What a rank draws after a checkpoint, and again when it is loaded."""
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(rank)
    draws()
    checkpoints = Checkpoints(folder, background=False)
    checkpoints.save({"dense/w": torch.ones(1), **random_state(rank)}, Manifest(1, {"step": 1}))
    expected = draws()
    state = {"dense/w": torch.ones(1), **random_state(rank)}
    draws()
    checkpoints.load(state, "step-000000001")
    set_random_state(state[f"rng/{rank}"])
    return expected, draws()


def test_every_rank_gets_its_own_generators_back(pool: Pool, tmp_path: Path) -> None:
    found = pool.run(2, saved_draws, tmp_path)
    assert found[0][0] != found[1][0]
    for expected, again in found:
        assert again == expected


@pytest.fixture
def job(data: Path) -> Job:
    return toys.job_of(data)


def test_what_has_changed_since_the_checkpoint_is_told(job: Job) -> None:
    with world("cpu") as here:
        now = circumstances(job, here)
        assert changes(Manifest(1, {}, about=now), job, here) == ""
        before = {**now, "ranks": 4, "threads": now["threads"] + 1, "config_hash": "another job"}
        threads = f"threads {now['threads'] + 1} -> {now['threads']}"
        assert changes(Manifest(1, {}, about=before), job, here) == f"ranks 4 -> 1, {threads}"
        more = World(0, 2, 2, here.device)
        assert changes(Manifest(1, {}, about=now), job, more) == "ranks 1 -> 2"


def agreed(rank: int, ranks: int, folder: Path) -> list[bool]:
    """Whether a save fits, on ranks that have measured it differently."""
    checkpoints = Checkpoints(folder)
    checkpoints.log.seconds = 5.0 + 10 * rank
    return [fits(checkpoints, {}, seconds) for seconds in (6.0, 16.0)]


def test_a_save_fits_if_it_fits_on_the_slowest_rank(pool: Pool, tmp_path: Path) -> None:
    assert pool.run(2, agreed, tmp_path) == [[False, True]] * 2


def test_a_run_may_move(learned: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(learned, tmp_path / "moved")
    run = RunDirectory(tmp_path / "moved")
    check_resumable(run, run.read_job(), load_schema(data))
