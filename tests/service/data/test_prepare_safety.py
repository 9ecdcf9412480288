"""`prepare` makes a whole dataset or nothing: bad input, kills and full folders leave earlier results alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sparta.models.errors import ConfigError, DataError, SpartaError
from sparta.models.schema import load_schema
from sparta.service.data.prepare import prepare
from tests.service.data.raws import a_raw_row, small, spec_of, write


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("bad", "changes", "message"),
    [
        ({"y": 2}, {}, r"test\.parquet: row 7, column 'y': label is 2; labels are 0 or 1"),
        ({"y": None}, {}, r"test\.parquet: row 7, column 'y': label is missing"),
        ({"w": -1.0}, {}, r"test\.parquet: row 7, column 'w': weight is -1\.0"),
        ({"w": None}, {}, "column 'w': weight is missing"),
        ({"n": float("nan")}, {}, r"test\.parquet: row 7, column 'n': nan is no finite float32"),
        ({}, {"sparse": {"wrod": {}}}, r"parquet: no column 'wrod'"),
        ({}, {"dense": {"word": {}}, "sparse": {"code": {}}}, "column 'word' holds string, not numbers"),
        ({}, {"files": {"train": "gone.parquet"}}, r"gone\.parquet: no such file"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, bad: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    good = prepare(small(tmp_path), tmp_path / "out", progress=False)
    before = contents(tmp_path / "out")
    spec = small(tmp_path, **{"dense": {"x": {}, "n": {}}} | changes)
    write(tmp_path / "test.parquet", [a_raw_row()] * 6 + [a_raw_row(**bad)])
    for out in ("out", "new"):
        with pytest.raises(DataError, match=message) as caught:
            prepare(spec, tmp_path / out, progress=False, overwrite=True)
        assert "\n" not in str(caught.value)
    assert contents(tmp_path / "out") == before
    assert load_schema(tmp_path / "out") == good
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "test.parquet", "train.parquet"]


def test_empty_splits_are_refused(tmp_path: Path) -> None:
    spec = small(tmp_path)
    write(tmp_path / "test.parquet", [])
    with pytest.raises(DataError, match="test: the split has no rows"):
        prepare(spec, tmp_path / "out", progress=False)
    fractions = spec_of(write(tmp_path / "one.parquet", [a_raw_row()]), split={"test": 0.5})
    with pytest.raises(DataError, match="the split has no rows"):
        prepare(fractions, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_existing_dataset_is_replaced_only_when_asked(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    prepare(small(tmp_path), out, progress=False)
    before = contents(out)
    other = small(tmp_path, sparse={"word": {"hash": 5}})
    with pytest.raises(ConfigError, match=r"holds a dataset already.*--overwrite"):
        prepare(other, out, progress=False)
    assert contents(out) == before
    schema = prepare(other, out, progress=False, overwrite=True)
    assert load_schema(out) == schema
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_what_is_no_dataset_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="is there already and no dataset"):
            prepare(small(tmp_path), tmp_path / "thesis", progress=False, overwrite=overwrite)
    monkeypatch.chdir(tmp_path / "thesis")
    with pytest.raises(ConfigError, match="is there already and no dataset"):
        prepare(small(tmp_path), Path("."), progress=False, overwrite=True)
    (tmp_path / "empty").mkdir()
    prepare(small(tmp_path), tmp_path / "empty", progress=False)


def test_unwritable_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SpartaError, match="out: cannot be written"):
        prepare(small(tmp_path), tmp_path / "file" / "out", progress=False)


def test_overwrite_cut_between_its_renames_is_mended(tmp_path: Path) -> None:
    spec = small(tmp_path)
    prepare(spec, tmp_path / "out", progress=False)
    before = contents(tmp_path / "out")
    os.rename(tmp_path / "out", tmp_path / ".out.replaced")
    with pytest.raises(ConfigError, match="holds a dataset already"):
        prepare(spec, tmp_path / "out", progress=False)
    assert contents(tmp_path / "out") == before


SLOW = """
import sys, time
from pathlib import Path
from sparta.service.data import prepare as module
from sparta.service.data.encode import Encoder
from sparta.service.data.spec import Spec
if sys.argv[3] == "rows":
    Encoder.encode = lambda *a, **k: time.sleep(60)
else:
    module.os.rename = lambda *a: time.sleep(60)  # all is written, schema.json too
module.prepare(Spec.model_validate_json(sys.argv[1]), Path(sys.argv[2]), progress=False)
"""


@pytest.mark.parametrize("stage", ["rows", "rename"])
def test_killed_prepare_leaves_nothing_loadable_and_the_next_one_cleans_up(
    tmp_path: Path, stage: str
) -> None:
    spec, out = small(tmp_path), tmp_path / "out"
    killed = subprocess.Popen([sys.executable, "-c", SLOW, spec.model_dump_json(), str(out), stage])
    late = tmp_path / ".out.preparing" / ("test" if stage == "rows" else "schema.json")
    deadline = time.monotonic() + 60
    while not late.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert late.exists()
    with pytest.raises(ConfigError, match="another prepare is writing"):
        prepare(spec, out, progress=False)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    with pytest.raises(DataError, match="no such dataset"):
        load_schema(out)
    schema = prepare(spec, out, progress=False)
    assert load_schema(out) == schema
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "test.parquet", "train.parquet"]
