"""Specs: short forms mean what the long ones do, and every mistake is one line that names the key."""

import subprocess
import sys
from pathlib import Path

import pytest

from sparta.models.errors import ConfigError, DataError
from sparta.service.data.spec import Spec, builtins, load_spec

JOBS = Path(__file__).parents[3] / "launcher" / "jobs"
SETS = ("anime", "census_income", "criteo_tb80k")
SMALL = "files: {train: a.csv}\nlabels: y\nsparse: [c, d]\ndense: [x]\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "spec.yaml"
    path.write_text(text)
    return path


def test_short_forms_mean_the_long_ones(tmp_path: Path) -> None:
    short = load_spec(write(tmp_path, SMALL))
    long = "files: {train: [a.csv]}\nlabels: [y]\nsparse: {c: {}, d: null}\ndense: {x: {transform: none}}\n"
    assert load_spec(write(tmp_path, long)) == short


def test_columns_follow_the_defaults_unless_they_say_otherwise(tmp_path: Path) -> None:
    text = (
        "files: {train: a.csv}\nlabels: y\ndense: {x: , z: {transform: none}}\n"
        "sparse: {c: , d: {min_count: 2}, e: {hash: 7}}\n"
        "defaults: {dense: {transform: log1p}, sparse: {min_count: 5, max_rows: 100}}\n"
    )
    spec = load_spec(write(tmp_path, text))
    assert spec.dense["x"].transform == "log1p"
    assert spec.dense["z"].transform == "none"
    assert (spec.sparse["c"].min_count, spec.sparse["c"].max_rows) == (5, 100)
    assert (spec.sparse["d"].min_count, spec.sparse["d"].max_rows) == (2, 100)
    assert (spec.sparse["e"].hash, spec.sparse["e"].min_count, spec.sparse["e"].max_rows) == (7, 1, None)


def test_default_hashing_gives_way_to_a_columns_own_vocabulary(tmp_path: Path) -> None:
    text = (
        "files: {train: a.csv}\nlabels: y\nsparse: {c: , d: {min_count: 2}}\ndefaults: {sparse: {hash: 9}}\n"
    )
    spec = load_spec(write(tmp_path, text))
    assert (spec.sparse["c"].hash, spec.sparse["d"].hash) == (9, None)


@pytest.mark.parametrize("name", builtins())
def test_dumped_spec_reads_back_as_itself(name: str) -> None:
    spec = load_spec(name, ["files.train=a.csv"])
    assert Spec.model_validate(spec.model_dump(mode="json")) == spec
    assert Spec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize("name", SETS)
def test_job_specs_are_valid_and_need_the_data_folder(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = JOBS / f"{name}.prepare.yaml"
    monkeypatch.setenv("SPARTA_DATA", "/data")
    spec = load_spec(path)
    assert spec.files["train"] == (f"/data/{name}/train.parquet",)
    assert "label_marital" not in (*spec.categories, *spec.numbers)
    monkeypatch.delenv("SPARTA_DATA")
    with pytest.raises(ConfigError, match="environment variable SPARTA_DATA"):
        load_spec(path)
    other = load_spec(path, ["files={train: /elsewhere/a.csv}"])
    assert other.files["train"] == ("/elsewhere/a.csv",)


def test_paths_start_at_the_spec_and_overrides_at_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    spec = load_spec(write(tmp_path, SMALL), ["files.test=b.csv"])
    assert spec.files["train"] == (str(tmp_path / "a.csv"),)
    assert spec.files["test"] == (str(tmp_path / "here" / "b.csv"),)
    monkeypatch.setenv("RAW", "raw")
    spec = load_spec(write(tmp_path, SMALL.replace("a.csv", "'${RAW}/a.csv'")))
    assert spec.files["train"] == (str(tmp_path / "here" / "raw" / "a.csv"),)


def test_base_is_overlaid_key_by_key(tmp_path: Path) -> None:
    text = (
        "base: criteo\nfiles: {train: a.txt}\nsparse: {C1: {hash: 10}}\ndefaults: {sparse: {min_count: 3}}\n"
    )
    spec = load_spec(write(tmp_path, text))
    assert spec.sparse["C1"].hash == 10
    assert spec.sparse["C2"].min_count == 3
    assert len(spec.sparse) == 26
    assert spec.dense["I1"].transform == "log1p_standardise"


def test_bucketised_numbers_become_leading_categories() -> None:
    spec = load_spec("criteo", ["files.train=a", "defaults.dense.transform=bucketise"])
    assert spec.numbers == ()
    assert list(spec.categories)[:14] == [*(f"I{i}" for i in range(1, 14)), "C1"]
    assert spec.categories["I1"].min_count == 10


def test_globs_are_sorted_and_misses_named(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv"):
        (tmp_path / name).touch()
    spec = load_spec(write(tmp_path, SMALL.replace("a.csv", "'*.csv'")))
    assert [path.name for path in spec.paths()["train"]] == ["a.csv", "b.csv"]
    with pytest.raises(DataError, match=r"nothing-\*\.csv: no such file"):
        load_spec(write(tmp_path, SMALL.replace("a.csv", "'nothing-*.csv'"))).paths()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sparse.c.min_cuont=2", r"sparse\.c\.min_cuont: unknown key; did you mean sparse\.c\.min_count\?"),
        ("defaults.dense.fil=2", r"defaults\.dense\.fil: unknown key; did you mean defaults\.dense\.fill\?"),
        ("lables=[y]", "lables: unknown key; did you mean labels"),
        ("dense.x.transform=log", "dense.x.transform: 'log' is none of .*log1p"),
        ("sparse.c.min_count=-1", "sparse.c.min_count: -1: .*greater than 0"),
        ("sparse.c.hash=0", "sparse.c.hash: 0: "),
        ("sparse.c.max_rows=1", "sparse.c.max_rows: 1: "),
        ("split.valid=0.1", "`split` divides one list"),
        ("files={all: a.csv}", "say with `split`"),
        ("files={test: a.csv}", r"files\.train is required"),
        ("files={}", "files names no file"),
        ("labels=[]", "labels: "),
        ("weight=y", "column 'y' is used twice"),
        ("sparse={user id: {}}", "column name 'user id' .*rename: {'user id': user_id}"),
        ("sparse={a.b: {}}", r"column name 'a\.b'"),
        ("sparse.c={hash: 3, min_count: 2}", "hash keeps no vocabulary"),
        ("base=crieto", "base: unknown key"),
        ("labels", "not of the form"),
    ],
)
def test_mistakes_are_one_line_that_names_the_key(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_spec(write(tmp_path, SMALL), [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ("{valid: 0.5, test: 0.5}", "leave no rows for train"),
        ("{valid: 0}", "neither valid nor test"),
        ("{valid: -0.1}", "split.valid"),
    ],
)
def test_fractions_leave_something_on_every_side(tmp_path: Path, fractions: str, message: str) -> None:
    text = SMALL.replace("{train: a.csv}", "a.csv") + f"split: {fractions}\n"
    with pytest.raises(ConfigError, match=message):
        load_spec(write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "a spec is a mapping"),
        ("files: [\n", r"spec\.yaml:2: not YAML"),
        ("base: crit\n", "base: 'crit' is none of"),
    ],
)
def test_files_that_are_no_spec(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_spec(write(tmp_path, text))


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="crieto: no such spec file; did you mean criteo"):
        load_spec("crieto")


def test_reading_a_spec_loads_no_torch() -> None:
    code = "import sys, sparta.service.data.prepare; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
