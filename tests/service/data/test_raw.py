"""Raw files: every format delivers the same rows, and every defect is one line that names file, row and column."""

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparta.models.errors import DataError
from sparta.service.data import raw
from sparta.service.data.raw import Kind, RawFile
from sparta.service.data.spec import Spec

KINDS: dict[str, Kind] = {"x": "number", "c": "category", "y": "number"}
ROWS = [{"x": float(i) if i % 3 else None, "c": f"v{i}", "y": float(i % 2)} for i in range(40)]


def spec(**changes: Any) -> Spec:
    base = {"files": {"train": "unused"}, "labels": "y", "dense": ["x"], "sparse": ["c"]}
    return Spec.model_validate(base | changes)


def text(delimiter: str = ",", header: bool = True) -> bytes:
    lines = [delimiter.join(("y", "c", "x"))] if header else []
    lines += [
        delimiter.join((str(row["y"]), str(row["c"]), "" if row["x"] is None else str(row["x"])))
        for row in ROWS
    ]
    return ("\n".join(lines) + "\n").encode()


def rows(file: RawFile) -> list[dict[str, Any]]:
    return [row for chunk in file.read(KINDS) for row in chunk.batch.to_pylist()]


def test_every_format_delivers_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "BATCH_ROWS", 7)
    monkeypatch.setattr(raw, "BLOCK_BYTES", 100)
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet", row_group_size=11)
    (tmp_path / "a.csv").write_bytes(text())
    (tmp_path / "a.tsv").write_bytes(text("\t"))
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(text()))
    (tmp_path / "crlf.csv").write_bytes(text().replace(b"\n", b"\r\n"))
    for name in ("a.parquet", "a.csv", "a.tsv", "a.csv.gz", "crlf.csv"):
        file = RawFile(tmp_path / name, spec())
        assert rows(file) == ROWS, name
        chunks = list(file.read(KINDS))
        assert [chunk.place.first for chunk in chunks] == [
            sum(len(before.batch) for before in chunks[:i]) for i in range(len(chunks))
        ]
        assert len(chunks) > 1
        assert chunks[-1].read > 0.9
    headless = spec(columns=["y", "c", "x"], format="tsv")
    (tmp_path / "a.txt").write_bytes(text("\t", header=False))
    assert rows(RawFile(tmp_path / "a.txt", headless)) == ROWS
    odd = spec(delimiter=";")
    (tmp_path / "odd.csv").write_bytes(text(";"))
    assert rows(RawFile(tmp_path / "odd.csv", odd)) == ROWS


def test_renamed_columns_arrive_under_their_new_names(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("the x,c,y\n1,a,0\n")
    file = RawFile(tmp_path / "a.csv", spec(rename={"the x": "x"}))
    assert rows(file) == [{"x": 1.0, "c": "a", "y": 0.0}]
    pq.write_table(pa.table({"the.x": [1.0], "c": ["a"], "y": [0.0]}), tmp_path / "a.parquet")
    assert rows(RawFile(tmp_path / "a.parquet", spec(rename={"the.x": "x"}))) == [
        {"x": 1.0, "c": "a", "y": 0.0}
    ]


def test_quotes_hold_delimiters_and_line_ends_in_csv_and_nothing_in_tsv(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('x,c,y\n1,"a,\nb",0\n')
    assert rows(RawFile(tmp_path / "a.csv", spec()))[0]["c"] == "a,\nb"
    (tmp_path / "a.tsv").write_text('x\tc\ty\n1\t"a\t0\n')
    assert rows(RawFile(tmp_path / "a.tsv", spec()))[0]["c"] == '"a'


def test_text_without_a_header_may_lack_its_labels_only_when_they_are_optional(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("v\t1\nw\t2\n")
    given = spec(columns=["y", "c", "x"])
    file = RawFile(path, given, frozenset({"y"}))
    assert rows(file) == [{"x": 1.0, "c": "v"}, {"x": 2.0, "c": "w"}]
    with pytest.raises(DataError, match="row 1 has 2 fields, the spec's `columns` names 3"):
        RawFile(path, given).check(KINDS)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "the file is empty"),
        ("a.csv", b"x,c\n1,a\n", "no column 'y'; it has x, c; .* or rename"),
        ("a.csv", b"x;c;y\n1;a;0\n", "no column 'x'; it has x;c;y; .* or delimiter"),
        ("a.csv", b"x,c,y,x\n1,a,0,1\n", "two columns are named 'x'"),
        ("a.csv", b"x,c,y\n1,a,0\n1,a\n", "Expected 3 columns, got 2.*; mend the row, .* delimiter or quote"),
        ("a.csv", b"x,c,y\n1,a,0\n1,a,0,7\n", "Expected 3 columns, got 4.*; mend the row"),
        ("a.csv", b"x,c,y\n1,a,0\n,b,1\nz1,a,0\nz2,a,0\n", "row 3, column 'x': 'z1' is no number; .*missing"),
        ("a.csv", b"x,c,y\n1,a,0\n2,\xff\xfe,1\n", "not readable .*UTF8"),
        ("a.csv.gz", gzip.compress(text())[:-30], "a.csv.gz: not readable .*cut short"),
        ("a.csv.gz", text(), "a.csv.gz: not readable"),
        ("a.parquet", b"PAR1 no more", "a.parquet: not readable"),
        ("a.parquet", b"", "a.parquet: not readable"),
        ("a.dat", text(), "neither .csv, .tsv nor .parquet"),
    ],
)
def test_defects_are_one_line_that_names_the_place(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        rows(RawFile(path, spec()))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_bad_number_is_found_behind_many_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "BLOCK_BYTES", 100)
    lines = [f"{i},a,0" for i in range(500)]
    lines[407] = "oops,a,0"
    (tmp_path / "a.csv").write_text("x,c,y\n" + "\n".join(lines) + "\n")
    with pytest.raises(DataError, match="row 408, column 'x': 'oops' is no number"):
        rows(RawFile(tmp_path / "a.csv", spec()))


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.csv: no such file"):
        RawFile(tmp_path / "gone.csv", spec()).check(KINDS)
    with pytest.raises(DataError, match=r"gone\.parquet: no such file"):
        RawFile(tmp_path / "gone.parquet", spec()).check(KINDS)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match=r"folder\.csv: "):
        RawFile(tmp_path / "folder.csv", spec()).check(KINDS)


def test_damaged_parquet_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cut short or damaged"):
        rows(RawFile(path, spec()))
    path.write_bytes(whole[:4] + bytes(60) + whole[64:])
    with pytest.raises(DataError, match="cut short or damaged"):
        rows(RawFile(path, spec()))


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("x", pa.array(["1"]), "column 'x' holds string, not numbers"),
        ("y", pa.array(["1"]), "column 'y' holds string, not numbers"),
        ("c", pa.array([[1]]), "column 'c' holds lists; say sparse.c.multi: true"),
        ("c", pa.array([{"a": 1}]), "which is no category"),
        ("c", pa.array([b"a"]), "which is no category"),
    ],
)
def test_wrong_types_are_refused(tmp_path: Path, column: str, values: pa.Array, message: str) -> None:
    columns = {"x": pa.array([1.0]), "c": pa.array(["a"]), "y": pa.array([0])} | {column: values}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=message):
        RawFile(tmp_path / "a.parquet", spec()).check(KINDS)
