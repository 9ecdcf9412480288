"""A run may begin with what another has learned, whatever that left; rows that are new begin as new rows do."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from torch import Tensor

from sparta.models.errors import ConfigError, DataError
from sparta.models.schema import load_schema
from sparta.service import build
from sparta.service.checkpoint import manifest as disk
from sparta.service.checkpoint.export import export
from sparta.service.checkpoint.storage import Storage
from sparta.service.config import Job
from sparta.service.data.prepare import prepare
from sparta.service.data.spec import load_spec
from sparta.service.run import RunDirectory
from sparta.service.warm import locate, start_from
from sparta.service.world import world
from sparta.sharding.state import LogicalTable
from tests.faults.harness import weights_of
from tests.pool import Pool
from tests.service import toys
from tests.service.refusal import refused, sparta

HELEN = {"tables": {"name": "helen", "lr": 0.02, "rho": 0.05}}
DECAYING = {"tables": {**HELEN["tables"], "weight_decay": 2.0}}
FUSED = {"tables": {"name": "rowwise_adagrad", "engine": "fbgemm", "lr": 0.1}}
WEIGHTS = ("tables/", "dense/")


def job_of(data: Path, **sections: Any) -> Job:
    """The job of the run that all start from, unless it says otherwise."""
    return toys.job_of(data, **{"optim": HELEN, **sections})


def started(job: Job, source: Path | str | None, *, weights_only: bool = False) -> dict[str, Tensor]:
    """All that a new run begins with, on one rank; of no source, what it makes itself."""
    with world("cpu") as here:
        schema = build.schema(job)
        model = build.model(job, schema)
        plan = build.plan(job, model, ranks=1, local_ranks=1, device="cpu")
        sharded = build.sharded(job, model, plan, here)
        step = build.step(job, sharded, here)
        if source is not None:
            start_from(str(source), schema, sharded, step, here, weights_only=weights_only)
        return {name: whole(value) for name, value in {**sharded.state_dict(), **step.state_dict()}.items()}


def whole(value: Tensor) -> Tensor:
    """A copy without its pieces."""
    if not isinstance(value, LogicalTable):
        return value.clone()
    found = torch.full(value.shape, -1.0).to(value.dtype)
    for window in value.windows:
        rows, columns = window.values.shape
        found[window.row : window.row + rows, window.column : window.column + columns] = window.values
    return found


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], prefixes: tuple[str, ...]) -> None:
    names = {name for name in expected if name.startswith(prefixes)}
    assert names
    assert names == {name for name in found if name.startswith(prefixes)}
    for name in names:
        assert torch.equal(found[name], expected[name]), name


@pytest.fixture(scope="module")
def newest(learned: Path) -> Path:
    storage = Storage(learned / "checkpoints")
    return learned / "checkpoints" / disk.committed(storage)[-1]


def test_a_checkpoint_gives_all_that_was_learned(data: Path, learned: Path, newest: Path) -> None:
    found, saved = started(job_of(data), newest), weights_of(learned, newest.name)
    assert_equal(found, saved, (*WEIGHTS, "optim/", "dense_optim/"))
    assert found["optim/step"] == 48


def test_weights_alone_leave_the_optimizers_as_they_begin(data: Path, learned: Path, newest: Path) -> None:
    found = started(job_of(data), newest, weights_only=True)
    assert_equal(found, weights_of(learned, newest.name), WEIGHTS)
    assert_equal(found, started(job_of(data), None), ("optim/", "dense_optim/"))


def test_a_run_gives_the_weights_its_result_is_about(data: Path, learned: Path) -> None:
    _, name = locate(str(learned))
    best = disk.read_manifest(Storage(learned / "checkpoints"), name).training["best_step"]
    assert name == disk.name_of(best)
    found = started(job_of(data), learned)
    assert_equal(found, weights_of(learned, name), (*WEIGHTS, "optim/", "dense_optim/"))


def test_an_export_gives_the_same_weights_and_has_no_more(
    data: Path, learned: Path, newest: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    export(RunDirectory(learned), Storage(learned / "checkpoints"), newest.name, out)
    found = started(job_of(data), out, weights_only=True)
    assert_equal(found, started(job_of(data), newest, weights_only=True), ("",))
    with pytest.raises(ConfigError, match="an export holds weights only; say --weights-only"):
        started(job_of(data), out)


def test_a_url_is_as_good_as_a_path(data: Path, newest: Path) -> None:
    found = started(job_of(data), f"file://{newest}/")
    assert_equal(found, started(job_of(data), newest), ("",))


@pytest.fixture(scope="module")
def grown(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset extended by rows with colours and users that were not there."""
    folder = tmp_path_factory.mktemp("grown")
    for number, (split, rows) in enumerate(toys.ROWS.items()):
        table = toys.raw_table(rows, 10 + number)
        for name, value in (("user", lambda v: v + 30), ("colour", lambda v: f"{v}x" if v < "c3" else v)):
            values = pa.array([value(old) for old in table.column(name).to_pylist()])  # type: ignore[operator]
            table = table.set_column(table.column_names.index(name), name, values)
        pq.write_table(table, folder / f"{split}.parquet")
    spec = yaml.safe_load((data.parent / "raw" / "spec.yaml").read_text())
    spec["files"] = {split: str(folder / f"{split}.parquet") for split in toys.ROWS}
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    prepare(load_spec(str(folder / "spec.yaml"), []), folder / "data", extend=data, progress=False)
    return folder / "data"


@pytest.fixture(scope="module")
def fused(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of engine fbgemm; do not change it."""
    folder = tmp_path_factory.mktemp("fused")
    job = toys.job_file(folder, data, optim=FUSED, train={"max_steps": 5})
    assert sparta("train", job, "--run-dir", folder / "run")[0] == 0
    return folder / "run"


@pytest.mark.parametrize("engine", ["rows", "fbgemm"])
@pytest.mark.parametrize("weights_only", [False, True])
def test_new_rows_begin_as_new_rows_do_and_old_ones_go_on(
    data: Path, grown: Path, learned: Path, fused: Path, engine: str, weights_only: bool
) -> None:
    source, optim = (learned, HELEN) if engine == "rows" else (fused, FUSED)
    saved = weights_of(source, locate(str(source))[1])
    job = job_of(grown, optim=optim)
    found, new = started(job, source, weights_only=weights_only), started(job, None)
    before, after = load_schema(data), load_schema(grown)
    more = {a.name for a, b in zip(after.sparse, before.sparse, strict=True) if a.rows > b.rows}
    assert more == {"user", "colour"}
    assert found.keys() == new.keys() == {name for name in saved if not name.startswith("rng/")}
    seen = set()
    for name, tensor in found.items():
        taken = name.startswith(WEIGHTS) or not weights_only
        old = saved[name] if taken else new[name]
        table = name.split("/")[1].removesuffix(".wide") if name.startswith(("tables/", "optim/")) else ""
        if table not in more:
            assert torch.equal(tensor, old), name
            continue
        rows = before.feature(table).rows
        assert len(tensor) == after.feature(table).rows
        assert torch.equal(tensor[:rows], old[:rows]), name
        assert torch.equal(tensor[rows:], new[name][rows:]), name
        seen.add(name)
    assert {"tables/user", "tables/colour.wide"} <= seen
    assert any(name.startswith("optim/user/") for name in seen)


@pytest.fixture(scope="module")
def owing(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A checkpoint whose rows owe weight decay, and that of a run which ended there, so that all had paid."""
    folder = tmp_path_factory.mktemp("owing")
    for name, steps in (("longer", 5), ("ended", 3)):
        job = toys.job_file(
            folder, data, optim=DECAYING, train={"max_steps": steps}, checkpoint={"every": 3, "keep": 2}
        )
        assert sparta("train", job, "--run-dir", folder / name)[0] == 0
    return folder / "longer" / "checkpoints" / disk.name_of(3), weights_of(folder / "ended")


def test_rows_that_owe_go_on_owing_and_new_ones_do_not(
    data: Path, grown: Path, owing: tuple[Path, dict[str, Tensor]]
) -> None:
    saved = weights_of(owing[0].parents[1], owing[0].name)
    found = started(job_of(grown, optim=DECAYING), owing[0])
    assert any(value.any() for name, value in saved.items() if name.endswith("/pending"))
    for name, value in found.items():
        if name.startswith(("tables/", "optim/")) and value.dim():
            assert torch.equal(value[: len(saved[name])], saved[name]), name
            assert not (name.endswith("/pending") and value[len(saved[name]) :].any()), name


def test_who_takes_weights_alone_takes_them_paid(
    data: Path, owing: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    source, paid = owing
    assert not any(value.any() for name, value in paid.items() if name.endswith("/pending"))
    found = started(job_of(data, optim=DECAYING), source, weights_only=True)
    assert_equal(found, started(job_of(data, optim=DECAYING), None), ("optim/", "dense_optim/"))
    weights = {name: value for name, value in paid.items() if name.startswith(WEIGHTS)}
    for name, value in weights.items():
        torch.testing.assert_close(found[name], value, rtol=2e-7, atol=0, msg=name)
    without = started(job_of(data), source)  # nor can a job without decay take up what is owed
    assert_equal(without, {name: found[name] for name in weights}, WEIGHTS)
    run, out = RunDirectory(source.parents[1]), tmp_path / "out"
    export(run, Storage(source.parent), source.name, out)
    exported = started(job_of(data), out, weights_only=True)
    assert_equal(exported, {name: found[name] for name in weights}, WEIGHTS)


def on_ranks(rank: int, ranks: int, job: Job, source: Path) -> dict[str, list[tuple[int, int, Tensor]]]:
    """This rank's windows of every table after a warm start."""
    with world("cpu") as here:
        schema = build.schema(job)
        model = build.model(job, schema)
        plan = build.plan(job, model, ranks=ranks, local_ranks=ranks, device="cpu")
        sharded = build.sharded(job, model, plan, here)
        step = build.step(job, sharded, here)
        start_from(str(source), schema, sharded, step, here, weights_only=False)
        state = {**sharded.state_dict(), **step.state_dict()}
        return {
            name: [(window.row, window.column, window.values.clone()) for window in value.windows]
            for name, value in state.items()
            if isinstance(value, LogicalTable)
        }


@pytest.mark.parametrize("kind", ["row_wise", "column_wise", "data_parallel"])
def test_every_plan_takes_the_same(pool: Pool, grown: Path, learned: Path, kind: str) -> None:
    constraints = {
        "user": [kind],
        "user.wide": ["table_wise"],
        "colour": [kind],
        "colour.wide": ["table_wise"],
    }
    job = job_of(grown, sharding={"constraints": constraints}, train={"ranks": 2})
    expected = started(job_of(grown), learned)
    covered: dict[str, int] = {}
    for windows in pool.run(2, on_ranks, job, learned):
        for name, pieces in windows.items():
            for row, column, values in pieces:
                rows, columns = values.shape
                there = expected[name][row : row + rows, column : column + columns]
                assert torch.equal(values, there), name
                covered[name] = covered.get(name, 0) + values.numel()
    for name, numbers in covered.items():
        assert numbers in (expected[name].numel(), 2 * expected[name].numel()), name


def test_ids_that_mean_something_else_are_refused(learned: Path, newest: Path, tmp_path: Path) -> None:
    foreign = toys.write_dataset(tmp_path)
    spec = load_spec(str(tmp_path / "raw" / "spec.yaml"), [])
    pq.write_table(toys.raw_table(300, 5), tmp_path / "raw" / "train.parquet")
    prepare(spec, foreign, progress=False, overwrite=True)
    for source in (learned, newest):
        with pytest.raises(DataError, match="ids of the dataset do not mean what they meant") as error:
            started(job_of(foreign), source)
        assert str(error.value).startswith(f"--from {source}: ")
        assert "--extend" in str(error.value)


def test_an_older_dataset_does_not_go_on_from_a_newer_run(data: Path, grown: Path, tmp_path: Path) -> None:
    job = toys.job_file(tmp_path, grown, train={"max_steps": 2})
    assert sparta("train", job, "--run-dir", tmp_path / "run")[0] == 0
    with pytest.raises(DataError, match="do not mean what they meant"):
        started(toys.job_of(data), tmp_path / "run")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model": {"args": {"hidden": [8]}}}, "dense/deep"),
        (
            {"model": {"embedding_dim": 4}},
            r"tables/\w+ is \(\d+, 8\) in the saved state, \(\d+, 4\) in the model; the job.s model must be",
        ),
        ({"optim": {"tables": {"name": "adam"}}}, "load the weights only"),
    ],
)
def test_another_model_is_refused_in_one_line(
    data: Path, newest: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(DataError, match=words) as error:
        started(job_of(data, **changes), newest)
    assert "\n" not in str(error.value)


def test_another_optimizer_takes_the_weights(data: Path, learned: Path, newest: Path) -> None:
    job = job_of(data, optim={"tables": {"name": "adam"}})
    found = started(job, newest, weights_only=True)
    assert_equal(found, weights_of(learned, newest.name), WEIGHTS)


def test_damage_is_refused_by_the_name_of_the_file(data: Path, newest: Path, tmp_path: Path) -> None:
    shutil.copytree(newest, tmp_path / newest.name)
    path = tmp_path / newest.name / "__0_0.distcp"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"__0_0.distcp has \d+ bytes of \d+; give --from another checkpoint"):
        started(job_of(data), tmp_path / newest.name)


def test_the_command_begins_a_new_run_and_refuses_in_one_line(
    data: Path, newest: Path, tmp_path: Path
) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(job_of(data, train={"max_steps": 3}).dump())
    words = ["train", job, "--run-dir", tmp_path / "run"]
    said = refused(tmp_path, *words, "--weights-only", code=2)
    assert said == "--weights-only says what to take of --from RUN, which is missing"
    code, _, err = sparta(*words, "--from", newest)
    assert code == 0, err
    assert [line["step"] for line in toys.history(tmp_path / "run") if "loss" in line] == [1, 2, 3]
    state = weights_of(tmp_path / "run")
    assert state["optim/step"] == 48 + 3
    for source in ("nowhere", data, data.parent):
        said = refused(tmp_path, *words[:2], "--run-dir", tmp_path / "other", "--from", source, code=2)
        assert said == (
            f"--from {source}: no run directory, no checkpoint (step-...) and no export; give one of these"
        )


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_so_again(
    data: Path, newest: Path, tmp_path: Path
) -> None:
    job = toys.job_file(tmp_path, data, optim=HELEN, train={"max_steps": 3})
    assert sparta("train", job, "--run-dir", tmp_path / "run", "--from", newest)[0] == 0
    losses = [line["loss"] for line in toys.history(tmp_path / "run") if "loss" in line]
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "result.json").unlink()
    # Who goes on need not know how it began.
    assert sparta("train", job, "--run-dir", tmp_path / "run", "--resume")[0] == 0
    assert [line["loss"] for line in toys.history(tmp_path / "run") if "loss" in line] == losses
