"""Bad jobs, datasets and run directories: one line that names the culprit, and nothing else is touched."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparta.service.data.order import Order
from tests.service import toys
from tests.service.refusal import contents, part, poke, refused, retyped, rewrite, sparta

ROOT = Path(__file__).parents[2]


@pytest.fixture
def place(tmp_path: Path, data: Path) -> Path:
    """A folder with a copy of the dataset, that may be damaged, an earlier run, and a job."""
    shutil.copytree(data, tmp_path / "data")
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    toys.job_file(earlier, data)
    (earlier / "result.json").write_text("{}")
    toys.job_file(tmp_path, tmp_path / "data", train={"log_every": 1000, "max_steps": 20})
    return tmp_path


def overridden(place: Path, verb: str, *overrides: str, code: int) -> str:
    """The line in which a job with overrides is refused."""
    words = [verb, place / "job.yaml", *(word for override in overrides for word in ("--set", override))]
    if verb == "train":
        words += ["--run-dir", place / "new"]
    return refused(place, *words, code=code)


@pytest.mark.parametrize("verb", ["check", "train"])
@pytest.mark.parametrize(
    "override, words",
    [
        ("data.path=nowhere", "nowhere: no such dataset; make it with `sparta prepare"),
        ("data.path=earlier", "earlier: holds no schema.json, so it is no (finished) dataset"),
        ("data.path=job.yaml", "job.yaml: no such dataset"),
        ("data.batch_size=-128", "data.batch_size: -128"),
        ("data.batch_size=100", "batch_size 100 does not divide by streams 16"),
        ("model.name=deepfn", "model.name: 'deepfn' is no model; did you mean 'deepfm'?"),
        ("model.name=no.such:Thing", "model.name: 'no.such' cannot be imported"),
        ("model.name=json:JSONDecoder", "is no torch.nn.Module class"),
        ("model.embedding_dim=-8", "model.embedding_dim: -8"),
        ("model.args.hidden=[-3]", "model.args.hidden.0: -3"),
        ("model.args.hidden=wide", "model.args.hidden: 'wide': input should be a valid array"),
        ("model.args.dropout=1.5", "model.args.dropout: 1.5: input should be less than 1"),
        ("model.args.hiden=[8]", "model.args: DeepFM takes no 'hiden'; did you mean 'hidden'?"),
        (
            "optim.tables.name=adagard",
            "'adagard' is none of sgd, adagrad, rowwise_adagrad, adam, nadam, radam, helen, sam, asam; did you mean",
        ),
        ("optim.tables.lr=-1", "optim.tables.lr: -1"),
        ("optim.dense.name=adm", "did you mean adam?"),
        ("optim.dense.args.weightdecay=1", "unexpected keyword argument 'weightdecay'"),
        ("optim.dense.args.lr=1", "optim.dense.args: Adam says: "),
        ("optim.dense.args.betas=[0.9]", "optim.dense.args: Adam says: "),
        ("optim.dense.args={fused: true, foreach: true}", "optim.dense.args: Adam says: "),
        (
            "tables.colur.dim=8",
            "tables: 'colur' is no categorical feature of the dataset; did you mean 'colour'?",
        ),
        ("tables.user.dim=4", "tables.user: dim 4 differs from embedding_dim 8"),
        ("sharding.constraints.usr=[row_wise]", "sharding.constraints: 'usr' is no categorical feature"),
        ("sharding.constraints.user=[grid]", "sharding.constraints.user.0: 'grid' is none of table_wise"),
        ("sharding.constraints.user=[]", "sharding.constraints.user: is empty; use table_wise"),
        (
            "train.gauc_by=usr",
            "train.gauc_by: 'usr' is no categorical feature of the dataset; did you mean 'user'?",
        ),
        ("train.gauc_by=tags", "train.gauc_by: 'tags' is multi-valued"),
        ("train.early_stop.metric=gauc", "metric gauc needs train.gauc_by"),
        ("train.epochs=0", "train.epochs: 0"),
        ("train.ranks=-1", "train.ranks: -1"),
        ("train.seeds=1", "train.seeds: unknown key; did you mean train.seed?"),
        ("sharding.plan", "--set sharding.plan: not of the form key.key=value"),
        ("name.x=1", "--set name.x=1: name is 'toy', not a mapping"),
        ("data.path=[1", "--set data.path=[1: the value is not YAML"),
    ],
)
def test_a_job_with_a_mistake(
    place: Path, monkeypatch: pytest.MonkeyPatch, verb: str, override: str, words: str
) -> None:
    monkeypatch.chdir(place)
    code = 3 if "dataset" in words and override.startswith("data.path") else 2
    assert words in overridden(place, verb, override, code=code)


@pytest.mark.parametrize("verb", ["check", "train"])
@pytest.mark.parametrize(
    "override, words",
    [
        ("sharding.memory_gb=1e-6", "table colour does not fit"),
        ("sharding.plan=nowhere.json", "nowhere.json: no such plan; `sparta plan` writes one"),
        ("sharding.plan=job.yaml", "job.yaml: not readable as JSON"),
        ("sharding.plan=ranks.json", "ranks.json: the plan is for 2 ranks, the job has 1; make a new plan"),
        ("sharding.plan=dim.json", "dim.json: the plan's table colour is 13 x 4, the model's is 13 x 8"),
        ("sharding.plan=dnn.json", "dnn.json: the plan does not place table 'colour.wide'"),
    ],
)
def test_a_plan_that_does_not_fit(
    place: Path, monkeypatch: pytest.MonkeyPatch, verb: str, override: str, words: str
) -> None:
    monkeypatch.chdir(place)
    changes = {
        "ranks.json": ["--ranks", "2"],
        "dim.json": ["--set", "model.embedding_dim=4"],
        "dnn.json": ["--set", "model.name=dnn"],
    }
    for name, change in changes.items():
        if name in override:
            assert sparta("plan", "job.yaml", "--save", name, *change)[0] == 0
    assert words in overridden(place, verb, override, code=4)


def schema(**changes: Any) -> Callable[[Path], None]:
    """Edit the dataset's schema; a function is applied to the old value."""

    def damage(data: Path) -> None:
        raw = json.loads((data / "schema.json").read_text())
        raw |= {key: change(raw[key]) if callable(change) else change for key, change in changes.items()}
        (data / "schema.json").write_text(json.dumps(raw))

    return damage


def table(change: Callable[[pa.Table], pa.Table], split: str = "train") -> Callable[[Path], None]:
    return lambda data: rewrite(part(data, split), change)


def cut(split: str, size: int) -> Callable[[Path], None]:
    return lambda data: part(data, split).write_bytes(part(data, split).read_bytes()[:size])


def rows(count: int) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    return lambda features: [{**features[0], "rows": count}, *features[1:]]


@pytest.mark.parametrize("verb", ["check", "train"])
@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda data: (data / "schema.json").unlink(), "data: holds no schema.json"),
        (lambda data: (data / "schema.json").write_text("{"), "schema.json: not readable as JSON"),
        (schema(format=7), "schema.json: dataset format 7, this sparta reads 1"),
        (schema(sparse=rows(-5)), "schema.json: sparse.0.rows: "),
        (schema(sparse=rows(0)), "schema.json: sparse.0.rows: "),
        (schema(splits={"train": -1}), "schema.json: splits.train: "),
        (schema(dense=["click"]), "column 'click' is named twice"),
        (
            lambda data: part(data, "train").unlink(),
            "data/train: holds 0 rows in 0 files, but schema.json says 2000",
        ),
        (lambda data: shutil.rmtree(data / "valid"), "data/valid: holds 0 rows in 0 files"),
        (cut("train", -200), "data/train/part-00000.parquet: not readable as Parquet"),
        (cut("train", 0), "data/train/part-00000.parquet: not readable as Parquet"),
        (cut("test", -200), "data/test/part-00000.parquet: not readable as Parquet"),
        (table(lambda t: t.slice(10)), "data/train: holds 1990 rows in 1 files, but schema.json says 2000"),
        (
            table(lambda t: t.drop_columns(["user"])),
            "part-00000.parquet: column 'user' of schema.json is missing",
        ),
        (table(retyped("price", pa.string())), "column 'price' is string, it must be float"),
        (table(retyped("user", pa.int64()), "test"), "column 'user' is int64, it must be int32"),
    ],
)
def test_a_damaged_dataset_is_seen_before_a_run_begins(
    place: Path, verb: str, damage: Callable[[Path], None], words: str
) -> None:
    damage(place / "data")
    assert words in overridden(place, verb, code=3)


@pytest.mark.parametrize("key, name", [("train.early_stop", "early_stop"), ("optim.plateau", "plateau")])
def test_watching_a_split_that_is_not_there(place: Path, key: str, name: str) -> None:
    schema(splits={"train": 2000, "test": 501})(place / "data")
    said = overridden(place, "check", f"{key}.metric=auc", code=2)
    assert said.startswith(f"{key}: ")
    assert f"has no valid split; prepare one or drop {name}" in said


def test_a_dataset_without_training_rows(place: Path) -> None:
    schema(splits={"test": 501})(place / "data")
    assert "has no training rows, only test" in overridden(place, "train", code=2)


def flipped(data: Path) -> None:
    content = bytearray(part(data, "train").read_bytes())
    content[len(content) // 3] ^= 0xFF
    part(data, "train").write_bytes(content)


@pytest.mark.parametrize(
    "damage, words",
    [
        (flipped, "row group 0: not readable as Parquet"),
        (table(poke("click", 17, 2.0)), "column 'click', row 17: label 2.0 is neither 0 nor 1"),
        (table(poke("click", 17, None)), "column 'click', row 17: null is no value of a prepared column"),
        (table(poke("user", 3, 41)), "column 'user', row 3: id 41 is outside its table of 41 rows"),
        (table(poke("user", 3, -1)), "column 'user', row 3: id -1 is outside its table"),
        (table(poke("tags", 5, [1, 77])), "column 'tags', row 5: id 77 is outside its table of 6 rows"),
        (table(poke("price", 9, float("nan"))), "column 'price', row 9: nan is not finite"),
        (table(poke("price", 9, float("inf"))), "column 'price', row 9: inf is not finite"),
        (schema(sparse=rows(3)), "column 'colour', row 0: id 3 is outside its table of 3 rows"),
    ],
)
def test_a_bad_value_ends_the_training_and_makes_no_result(
    place: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(place / "data")
    new = place / "new"
    said = refused(place, "train", place / "job.yaml", "--run-dir", new, code=3, leaves=new)
    assert words in said
    assert "data/train/part-00000.parquet: row group 0" in said
    assert "prepare the dataset again with `sparta prepare`" in said
    assert not (new / "result.json").exists()
    assert not list(new.rglob("COMMIT"))


@pytest.mark.parametrize("engine", ["fbgemm", "rows"])
def test_a_loss_that_is_no_number_ends_the_training(place: Path, engine: str) -> None:
    new = place / engine
    wild = (
        f"optim={{tables: {{name: sgd, engine: {engine}, lr: 1.0e+38}}, dense: {{name: sgd, lr: 1.0e+30}}}}"
    )
    code, out, err = sparta(
        "train", place / "job.yaml", "--run-dir", new, "--set", wild, "--set", "train.log_every=2"
    )
    said = err.splitlines()[-1]
    assert (code, out) == (3, "")
    words = "step 2: the loss or a gradient is not finite, so the weights are those before it; lower"
    assert said.startswith(f"error: {words}")
    assert not list(new.rglob("COMMIT"))


@pytest.mark.parametrize("where, words", [("file", "cannot be made"), ("file/new", "file is a file")])
def test_a_run_directory_with_a_file_in_the_way(place: Path, where: str, words: str) -> None:
    (place / "file").write_text("precious")
    said = refused(place, "train", place / "job.yaml", "--run-dir", place / where, code=2)
    assert said.startswith(f"{place / where}: ")
    assert words in said
    assert said.endswith("give a writable --run-dir")


def test_an_unwritable_run_directory(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "locked").mkdir()
    access = os.access  # the tests may run as root, who may write everywhere
    monkeypatch.setattr(
        os, "access", lambda path, mode, **more: "locked" not in str(path) and access(path, mode, **more)
    )
    for run in ("locked", "locked/a/b"):
        said = refused(place, "train", place / "job.yaml", "--run-dir", place / run, code=2)
        assert said == f"{place / run}: {place / 'locked'} is not writable; give another --run-dir"


def test_a_disk_that_refuses_in_the_middle(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path) -> None:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "touch", full)  # history.jsonl begins so
    new = place / "new"
    said = refused(place, "train", place / "job.yaml", "--run-dir", new, code=1, leaves=new)
    assert said == f"{new / 'history.jsonl'}: No space left on device; mend that and run it again"


def test_a_run_directory_that_holds_another_run(place: Path) -> None:
    said = refused(place, "train", place / "job.yaml", "--run-dir", place / "earlier", code=2)
    assert said == f"{place / 'earlier'}: already holds a run; give another --run-dir"


def test_a_job_file_that_is_none(place: Path) -> None:
    (place / "broken.yaml").write_text("name: [")
    for name, words in [
        ("nowhere.yaml", "No such file"),
        ("data", "Is a directory"),
        ("broken.yaml", "broken.yaml:1: not YAML"),
    ]:
        said = refused(place, "check", place / name, code=2)
        assert name in said
        assert words in said


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.batch_size=8192"],
        ["optim.schedule.warmup=1000", "optim.schedule.decay=cosine"],
        ["train.log_every=1000", "train.evaluate_every=1000", "train.max_steps=3"],
        ["train.early_stop.patience=5"],
    ],
)
def test_what_is_odd_but_no_mistake_works(place: Path, overrides: list[str]) -> None:
    words = [word for override in overrides for word in ("--set", override)]
    run = place / "new"
    code, out, err = sparta("train", place / "job.yaml", "--run-dir", run, "--set", "train.epochs=1", *words)
    assert (code, "error: " in err, "run directory: " in out) == (0, False, True)
    assert json.loads((run / "result.json").read_text())["eval"]["test"]["click"]["logloss"] > 0


def late_group_of_rank_1(path: Path, seed: int) -> int:
    """A row group that rank 1 of 2 alone reads, and only after some steps."""
    metadata = pq.read_metadata(path)
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    first = []
    for rank in (0, 1):
        order = Order(sizes, batch_size=128, streams=2, rank=rank, ranks=2, seed=seed)
        first.append({p.group: step for step in reversed(range(order.steps)) for p in order.pieces(step)})
    return max(first[1].keys() - first[0].keys(), key=lambda group: first[1][group])


def test_what_one_rank_alone_meets_ends_all_in_one_line(place: Path) -> None:
    path = part(place / "data", "train")
    rewrite(path, lambda t: t, row_group_size=100)
    group = late_group_of_rank_1(path, seed=1)
    rewrite(path, poke("user", 100 * group + 7, 99), row_group_size=100)
    before = contents(place)
    words = ["train", "job.yaml", "--ranks", "2", "--run-dir", "new", "--set", "data.streams=2"]
    done = subprocess.run(
        [sys.executable, "-m", "sparta.launcher", *words],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = f"row group {group}, column 'user', row 7: id 99 is outside its table of 41 rows"
    assert (done.returncode, done.stdout) == (3, "")
    assert said in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert before.items() <= contents(place).items()
    assert "error: " not in (place / "new/logs/train/rank-0.log").read_text()
    assert "error: " in (place / "new/logs/train/rank-1.log").read_text()
