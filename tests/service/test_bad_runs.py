"""Bad raw files, run directories and checkpoints: one line that names the culprit, and nothing is touched."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.service import toys
from tests.service.refusal import poke, refused, retyped, rewrite, sparta


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run; do not change it."""
    folder = tmp_path_factory.mktemp("finished")
    job = toys.job_file(folder, data, train={"max_steps": 4, "epochs": 1})
    assert sparta("train", job, "--run-dir", folder / "run")[0] == 0
    return folder / "run"


@pytest.fixture
def place(tmp_path: Path, data: Path, finished: Path) -> Path:
    """Copies that may be damaged: `run`, its `data`, and `raw` files with a spec."""
    shutil.copytree(finished, tmp_path / "run")
    shutil.copytree(data, tmp_path / "data")
    toys.write_raw(tmp_path / "raw")
    edit(lambda job: job["data"].update(path=str(tmp_path / "data")))(tmp_path / "run")
    return tmp_path


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Edit a run's job.yaml."""

    def damage(run: Path) -> None:
        job = yaml.safe_load((run / "job.yaml").read_text())
        change(job)
        (run / "job.yaml").write_text(yaml.safe_dump(job))

    return damage


def every(pattern: str, change: Callable[[Path], object]) -> Callable[[Path], None]:
    """Damage every file of a run that matches."""

    def damage(run: Path) -> None:
        found = list(run.glob(pattern))
        assert found
        for path in found:
            change(path)

    return damage


COMMIT, WEIGHTS, METADATA = (f"checkpoints/*/{name}" for name in ("COMMIT", "*.distcp", ".metadata"))


@pytest.mark.parametrize(
    "damage, code, words",
    [
        (every("job.yaml", Path.unlink), 2, "run: holds no job.yaml, so it is no run directory"),
        (every("job.yaml", lambda path: path.write_text("{")), 2, "job.yaml:1: not YAML"),
        (every("plan.json", Path.unlink), 4, "plan.json: no such plan"),
        (every("plan.json", lambda path: path.write_text("{}")), 4, "plan.json: ranks: "),
        (every("checkpoints", shutil.rmtree), 3, "checkpoints: holds no complete checkpoint"),
        (every(COMMIT, Path.unlink), 3, "checkpoints: holds no complete checkpoint"),
        (every(COMMIT, lambda path: path.write_text('{"step": 4}')), 3, "COMMIT is missing or broken"),
        (every(COMMIT, lambda path: path.write_text('{"format": 9, "step": 4}')), 3, "checkpoint format 9"),
        (every(WEIGHTS, Path.unlink), 3, "step-000000004: __0_0.distcp is gone"),
        (
            every(WEIGHTS, lambda path: path.write_bytes(path.read_bytes()[:99])),
            3,
            "step-000000004: __0_0.distcp has 99 bytes of ",
        ),
        (every(METADATA, Path.unlink), 3, "step-000000004: .metadata is gone"),
        (
            every(METADATA, lambda path: path.write_bytes(b"\0")),
            3,
            "step-000000004: .metadata has 1 bytes of ",
        ),
        (edit(lambda job: job["data"].update(path="/nowhere/data")), 3, "/nowhere/data: no such dataset"),
        (
            edit(lambda job: job["model"].update(name="dnn")),
            4,
            "plan.json: the plan places table 'colour.wide'",
        ),
        (edit(lambda job: job["model"]["args"].update(hidden=[8])), 3, "dense/deep"),
        (
            # On another number of ranks the plan is made anew, so that only the weights can tell.
            edit(lambda job: (job["model"].update(name="dnn"), job["train"].update(ranks=2))),
            3,
            "is not in the model: it belongs to another job; use that job.yaml",
        ),
    ],
)
def test_a_damaged_run(place: Path, damage: Callable[[Path], None], code: int, words: str) -> None:
    damage(place / "run")
    said = refused(place, "evaluate", place / "run", "--checkpoint", "best", code=code)
    assert words in said


def test_what_is_no_run_split_or_checkpoint(place: Path) -> None:
    for folder in ("nowhere", "data", "raw/spec.yaml"):
        said = refused(place, "evaluate", place / folder, code=2)
        assert said == f"{place / folder}: holds no job.yaml, so it is no run directory of `sparta train`"
    said = refused(place, "evaluate", place / "run", "--split", "tset", code=3)
    assert said == f"{place / 'data'}: has no 'tset' split, only train, valid, test"
    every(COMMIT, Path.unlink)(place / "run")
    said = refused(place, "evaluate", place / "run", "--checkpoint", "last", code=3)
    assert (
        said == f"{place / 'run/checkpoints'}: holds no complete checkpoint; train first with `sparta train`"
    )


def raw(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    return lambda place: rewrite(place / "raw/test.parquet", change)


RAW = [
    (lambda place: (place / "raw/test.parquet").unlink(), "test.parquet: no such file"),
    (lambda place: (place / "raw/test.parquet").write_bytes(b""), "test.parquet: not readable"),
    (
        lambda place: (place / "raw/test.parquet").write_bytes(
            (place / "raw/test.parquet").read_bytes()[:-99]
        ),
        "test.parquet: not readable",
    ),
    (
        raw(lambda t: t.drop_columns(["user"])),
        "test.parquet: no column 'user'; it has click, price, colour, tags",
    ),
    (raw(retyped("price", pa.string())), "test.parquet: column 'price' holds string, not numbers"),
    (raw(retyped("click", pa.string())), "test.parquet: column 'click' holds string, not numbers"),
    (raw(poke("click", 7, 2)), "test.parquet: row 8, column 'click': label is 2; labels are 0 or 1"),
    (raw(poke("price", 7, float("nan"))), "test.parquet: row 8, column 'price': nan is no finite float32"),
    (raw(lambda t: t.slice(0, 0)), "no rows"),
]


@pytest.mark.parametrize("damage, words", RAW)
def test_a_bad_raw_file_is_neither_scored_nor_prepared(
    place: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(place)
    file, out = place / "raw/test.parquet", place / "scores.parquet"
    assert words in refused(place, "predict", place / "run", file, "--out", out, code=3)
    assert words in refused(place, "prepare", place / "raw/spec.yaml", "--out", place / "new", code=3)


@pytest.mark.parametrize("value, shown", [(None, "missing"), (-1, "-1")])
def test_a_bad_label_in_the_training_file(place: Path, value: object, shown: str) -> None:
    rewrite(place / "raw/train.parquet", poke("click", 1999, value))
    said = refused(place, "prepare", place / "raw/spec.yaml", "--out", place / "new", code=3)
    assert f"train.parquet: row 2000, column 'click': label is {shown}; labels are 0 or 1" in said


@pytest.mark.parametrize(
    "out, words",
    [
        ("taken.parquet", "taken.parquet: exists already; give another --out or remove it"),
        ("data", "data: exists already"),
        ("scores.csv", "scores.csv: scores are written as Parquet; give --out "),
        ("no/such/p.parquet", "no/such/p.parquet: its folder does not exist"),
        ("taken.parquet/p.parquet", "its folder does not exist"),
    ],
)
def test_a_place_for_scores_that_is_taken_or_not_there(place: Path, out: str, words: str) -> None:
    (place / "taken.parquet").write_text("precious")
    words_of = ["predict", place / "run", place / "raw/test.parquet", "--out", place / out]
    assert words in refused(place, *words_of, code=2)


def test_a_dataset_that_cannot_encode_any_more(place: Path) -> None:
    words = ["predict", place / "run", place / "raw/test.parquet", "--out", place / "p.parquet"]
    (place / "data/vocab/user.parquet").write_bytes(b"PAR1")
    assert "vocab/user.parquet: no readable vocabulary" in refused(place, *words, code=3)
    (place / "data/transform.json").unlink()
    assert "transform.json: not readable" in refused(place, *words, code=3)


def test_text_with_a_word_for_a_number(place: Path) -> None:
    (place / "x.csv").write_text("price,colour,user,tags\n1.5,c1,3,1|2\nabc,c1,3,1|2\n")
    (place / "x.txt").write_text("hello")
    words = ["predict", place / "run", place / "x.csv", "--out", place / "p.parquet"]
    assert "x.csv: row 2, column 'price': 'abc' is no number" in refused(place, *words, code=3)
    words[2] = place / "x.txt"
    assert "x.txt: neither .csv, .tsv nor .parquet" in refused(place, *words, code=3)


@pytest.mark.parametrize(
    "override, words",
    [
        ("sparse.user.min_count=-1", "sparse.user.min_count: -1"),
        ("sparse.user.hash=0", "sparse.user.hash: 0"),
        ("sparse.user.max_rows=1", "sparse.user.max_rows: 1"),
        ("sparse.user.mincount=2", "sparse.user.mincount: unknown key; did you mean sparse.user.min_count?"),
        ("label=click", "label: unknown key; did you mean labels?"),
        ("dense.price.transform=log", "'log' is none of none, log1p"),
        ("labels=clicks", "column 'clicks'"),
        ("sparse=[colour, usr, tags]", "no column 'usr'; it has click, price, colour, user, tags"),
        ("labels=price", "'price' is used twice"),
        ("files.train=nowhere.parquet", "nowhere.parquet: no such file"),
        ("files.trian=a.parquet", "files.trian"),
    ],
)
def test_a_spec_with_a_mistake(place: Path, override: str, words: str) -> None:
    code = 3 if words.startswith(("no column", "nowhere", "column 'clicks'")) else 2
    words_of = ["prepare", place / "raw/spec.yaml", "--out", place / "new", "--set", override]
    assert words in refused(place, *words_of, code=code)


def test_a_spec_that_is_not_there(place: Path) -> None:
    assert "did you mean criteo?" in refused(place, "prepare", "criteoo", "--out", place / "new", code=2)
    said = refused(place, "prepare", place / "nowhere.yaml", "--out", place / "new", code=2)
    assert said.startswith(f"{place / 'nowhere.yaml'}: no such spec file")


@pytest.mark.parametrize("verb", ["prepare", "synth"])
def test_a_folder_that_is_not_ours_to_replace(place: Path, verb: str) -> None:
    words = {"prepare": ["prepare", place / "raw/spec.yaml"], "synth": ["synth", "--rows", "100"]}[verb]
    (place / "file").write_text("precious")
    for out in ("raw", "run", "file", "file/below"):
        said = refused(place, *words, "--out", place / out, code=2)
        assert said.startswith(f"{place / out}: ")
    if verb == "prepare":
        said = refused(place, *words, "--out", place / "data", code=2)
        assert "holds a dataset already; give another --out, or --overwrite" in said


def test_an_earlier_dataset_survives_a_failed_overwrite(place: Path) -> None:
    rewrite(place / "raw/test.parquet", poke("click", 500, 7))
    words = ["prepare", place / "raw/spec.yaml", "--out", place / "data", "--overwrite"]
    assert "row 501, column 'click': label is 7" in refused(place, *words, code=3)


def test_scores_without_a_mistake(place: Path) -> None:
    """The refusals above are not those of a command that never works."""
    words = ["predict", place / "run", place / "raw/test.parquet", "--out", place / "p.parquet"]
    assert sparta(*words)[:2] == (0, f"501 rows scored: {place / 'p.parquet'}\n")
    assert pq.read_metadata(place / "p.parquet").num_rows == toys.ROWS["test"]
    assert sparta("evaluate", place / "run", "--split", "valid", "--json")[0] == 0
