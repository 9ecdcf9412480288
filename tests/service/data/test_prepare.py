"""`prepare` equals the slow oracle, whatever the cut of the rows; what it learns comes from train only."""

import csv
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparta.models.errors import DataError
from sparta.models.schema import load_schema
from sparta.service.data import parts, raw, vocab
from sparta.service.data.encode import Encoder
from sparta.service.data.loader import Loader
from sparta.service.data.prepare import encode_file, prepare
from sparta.service.data.spec import Spec, load_spec
from sparta.service.data.vocab import load_vocabulary
from tests.service.data import oracle
from tests.service.data.raws import a_dense, a_raw_row, a_row, options, read, small, spec_of, write

DATA = Path(__file__).parents[4] / "shared" / "data"
JOBS = Path(__file__).parents[3] / "launcher" / "jobs"


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_dataset_is_the_oracles_however_the_rows_are_cut(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("raw")
    train = data.draw(st.lists(a_row, min_size=1, max_size=12), "train")
    test = data.draw(st.lists(a_row, min_size=1, max_size=4), "test")
    cut = data.draw(st.integers(0, len(train)), "cut")
    files = {
        "train": [write(folder / "a.parquet", train[:cut]), write(folder / "b.parquet", train[cut:])],
        "test": write(folder / "test.parquet", test),
    }
    sparse = {name: data.draw(options, name) for name in ("word", "code", "real", "tags", "list")}
    sparse["tags"] |= {"separator": data.draw(st.sampled_from([",", ", "]), "separator")}
    sparse["list"] |= {"multi": True}
    dense = {name: data.draw(a_dense, name) for name in ("x", "n")}
    spec = spec_of(files, sparse=sparse, dense=dense)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(raw, "BATCH_ROWS", data.draw(st.integers(1, 5), "batch"))
        patch.setattr(parts, "GROUP_ROWS", 4)
        patch.setattr(parts, "PART_GROUPS", 2)
        patch.setattr(vocab, "_PENDING", 3)
        schema = prepare(spec, folder / "out", progress=False)
    assert schema == load_schema(folder / "out")
    assert schema.splits == {"train": len(train), "test": len(test)}
    for split, rows in (("train", train), ("test", test)):
        found, expected = read(folder / "out", split), oracle.encode(rows, train, spec)
        assert list(found) == list(expected)
        for name in expected:
            if name in spec.numbers:
                np.testing.assert_allclose(
                    found[name], np.array(expected[name], np.float32), rtol=1e-5, atol=1e-6
                )
            else:
                assert found[name] == expected[name], name
    for feature in schema.sparse:
        _check_vocabulary(folder / "out", feature.name, feature.rows, train, spec)
    sizes = [
        pq.read_metadata(part).row_group(g).num_rows
        for part in sorted((folder / "out" / "train").iterdir())
        for g in range(pq.read_metadata(part).num_row_groups)
    ]
    assert sizes == [4] * (len(train) // 4) + [len(train) % 4] * (len(train) % 4 > 0)


def _check_vocabulary(dataset: Path, name: str, rows: int, train: Sequence[oracle.Row], spec: Spec) -> None:
    """Ids decode to the values they came from, and counts are those of the training ids."""
    column = spec.categories[name]
    vocabulary = load_vocabulary(dataset, name)
    encoded = read(dataset, "train")[name]
    flat = [i for ids in encoded for i in ids] if column.lists else encoded
    assert vocabulary.rows == rows
    assert vocabulary.counts.tolist() == np.bincount(np.array(flat, int), minlength=rows).tolist()
    if column.hash:
        assert rows == column.hash + 1
        return
    assert column.max_rows is None or rows <= column.max_rows
    texts = [text for row in train for text in oracle.values(row, name, spec)]
    values = [None, *vocabulary.values.to_pylist()]
    for text, i in zip(texts, flat, strict=True):
        assert values[i] == text or (i == 0 and text not in values)


def test_text_files_give_the_dataset_of_parquet_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = [
        {"y": int(y), "z": 0, "w": 1.0, "x": float(x), "word": str(word), "tags": "a, b"}
        for y, x, word in zip(
            rng.integers(0, 2, 50), rng.normal(size=50), rng.choice(["", "u", "v"], 50), strict=True
        )
    ]
    with open(tmp_path / "a.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    sparse = {"word": {}, "tags": {"separator": ","}}
    for name in ("csv", "parquet"):
        spec = spec_of(
            {"train": str(tmp_path / f"a.{name}")}, sparse=sparse, dense={"x": {"transform": "standardise"}}
        )
        prepare(spec, tmp_path / name, progress=False)
    assert read(tmp_path / "csv", "train") == read(tmp_path / "parquet", "train")
    assert load_schema(tmp_path / "csv") == load_schema(tmp_path / "parquet")


def test_fractions_learn_from_their_training_rows_only(tmp_path: Path) -> None:
    rows = [a_raw_row(word=f"v{i}", x=float(i)) for i in range(300)]
    changes = {"split": {"valid": 0.2, "test": 0.2, "seed": 5}, "dense": {"x": {"transform": "standardise"}}}
    schema = prepare(
        spec_of(write(tmp_path / "a.parquet", rows), **changes), tmp_path / "out", progress=False
    )
    assert sum(schema.splits.values()) == 300
    for split in ("valid", "test"):
        assert set(read(tmp_path / "out", split)["word"]) == {0}
    train = read(tmp_path / "out", "train")
    assert min(train["word"]) == 1
    assert schema.feature("word").rows == schema.splits["train"] + 1
    assert abs(np.mean(train["x"])) < 1e-5
    assert abs(np.std(train["x"]) - 1) < 1e-5


def test_time_fraction_puts_the_newest_rows_into_test(tmp_path: Path) -> None:
    rows = [a_raw_row(code=i, x=float(i)) for i in np.random.default_rng(1).permutation(100).tolist()]
    changes = {"split": {"valid": 0.1, "test": 0.2, "time": "x"}}
    schema = prepare(
        spec_of(write(tmp_path / "a.parquet", rows), **changes), tmp_path / "out", progress=False
    )
    assert schema.splits == {"train": 70, "valid": 10, "test": 20}
    assert min(read(tmp_path / "out", "test")["x"]) == 80
    assert max(read(tmp_path / "out", "train")["x"]) == 69


def test_memory_follows_the_vocabulary_not_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    for name in ("BATCH_ROWS", "GROUP_ROWS"):
        monkeypatch.setattr(raw if name == "BATCH_ROWS" else parts, name, 5000)
    peaks = []
    encode = Encoder.encode

    def measured(*args: Any, **options: Any) -> pa.Table:
        seen.append(pa.total_allocated_bytes() + tracemalloc.get_traced_memory()[0])  # Arrow's and numpy's
        return encode(*args, **options)

    monkeypatch.setattr(Encoder, "encode", measured)
    for rows in (50_000, 400_000):
        table = pa.table({"y": np.ones(rows), "x": rng.normal(size=rows), "c": rng.integers(0, 1000, rows)})
        pq.write_table(table, tmp_path / "a.parquet", row_group_size=5000)
        del table
        seen: list[int] = []
        spec = Spec.model_validate(
            {"files": {"train": str(tmp_path / "a.parquet")}, "labels": "y", "dense": ["x"], "sparse": ["c"]}
        )
        tracemalloc.start()
        prepare(spec, tmp_path / str(rows), progress=False)
        tracemalloc.stop()
        peaks.append(max(seen) - seen[0])
    assert peaks[1] < 1.5 * peaks[0] + 2**20


def test_raw_file_to_score_is_encoded_as_the_training_rows_were(tmp_path: Path) -> None:
    spec = small(tmp_path)
    schema = prepare(spec, tmp_path / "out", progress=False)
    expected = read(tmp_path / "out", "test")
    rows = encode_file(tmp_path / "out", schema, tmp_path / "test.parquet", tmp_path / "scores" / "test")
    assert rows == 6
    assert read(tmp_path / "scores", "test") == expected
    bare = pq.read_table(tmp_path / "test.parquet").drop_columns(["y", "z", "w"])
    pq.write_table(bare, tmp_path / "bare.parquet")
    encode_file(tmp_path / "out", schema, tmp_path / "bare.parquet", tmp_path / "bare" / "test")
    assert read(tmp_path / "bare", "test") == expected | {"y": [0.0] * 6, "z": [0.0] * 6, "w": [1.0] * 6}
    unlabelled = bare.append_column("y", pa.nulls(6, pa.int8()))
    pq.write_table(unlabelled, tmp_path / "null.parquet")
    encode_file(tmp_path / "out", schema, tmp_path / "null.parquet", tmp_path / "null" / "test")
    assert read(tmp_path / "null", "test")["y"] == [0.0] * 6
    pq.write_table(bare.drop_columns(["code"]), tmp_path / "less.parquet")
    with pytest.raises(DataError, match="no column 'code'"):
        encode_file(tmp_path / "out", schema, tmp_path / "less.parquet", tmp_path / "less")
    pq.write_table(bare.slice(0, 0), tmp_path / "none.parquet")
    with pytest.raises(DataError, match="the file has no rows"):
        encode_file(tmp_path / "out", schema, tmp_path / "none.parquet", tmp_path / "none")


def test_loader_reads_what_prepare_writes(tmp_path: Path) -> None:
    schema = prepare(small(tmp_path), tmp_path / "out", progress=False)
    loader = Loader(tmp_path / "out", schema, "train", batch_size=4, streams=2, shuffle=False)
    assert sum(1 for _ in loader.epoch(0)) == loader.steps


@pytest.mark.parametrize("name", ["anime", "census_income", "criteo_tb80k"])
def test_real_data_prepares(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not DATA.is_dir():
        pytest.skip(f"no real data at {DATA}")
    # The oracle is slow: the first rows of each file will do.
    (tmp_path / name).mkdir()
    rows = {}
    for split in ("train", "valid", "test"):
        table = pq.read_table(DATA / name / f"{split}.parquet").slice(0, 500)
        pq.write_table(table, tmp_path / name / f"{split}.parquet")
        rows[split] = table
    monkeypatch.setenv("SPARTA_DATA", str(tmp_path))
    spec = load_spec(JOBS / f"{name}.prepare.yaml")
    schema = prepare(spec, tmp_path / "out", progress=False)
    names = [spec.rename.get(column, column) for column in rows["train"].column_names]
    train, test = (rows[split].rename_columns(names).to_pylist() for split in ("train", "test"))
    found, expected = read(tmp_path / "out", "test"), oracle.encode(test, train, spec)
    for column in (*(feature.name for feature in schema.sparse), *schema.labels):
        assert found[column] == expected[column], column
    for column in schema.dense:
        np.testing.assert_allclose(found[column], expected[column], rtol=1e-5, atol=1e-6)


def test_builtin_criteo_reads_the_raw_layout(tmp_path: Path) -> None:
    if not DATA.is_dir():
        pytest.skip(f"no real data at {DATA}")
    files = [f"files.{split}={DATA}/criteo_raw/{split}.txt.gz" for split in ("train", "valid", "test")]
    schema = prepare(load_spec("criteo", files), tmp_path / "out", progress=False)
    assert schema.splits == {"train": 7200, "valid": 409, "test": 391}
    bars = load_spec("criteo", [*files, "defaults.dense.transform=bucketise"])
    schema = prepare(bars, tmp_path / "bars", progress=False)
    assert (len(schema.dense), len(schema.sparse)) == (0, 39)
    values = load_vocabulary(tmp_path / "bars", "I5").values.to_pylist()
    assert {str(int(np.floor(np.log(1382) ** 2)))} <= set(values)
