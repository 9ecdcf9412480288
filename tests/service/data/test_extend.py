"""An extended dataset: old ids and statistics stay, new values come behind, whatever the cut of the rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sparta.models.errors import ConfigError, DataError
from sparta.models.schema import load_schema
from sparta.service.__main__ import main
from sparta.service.data import raw, vocab
from sparta.service.data.prepare import encode_file, prepare
from sparta.service.data.spec import Spec
from sparta.service.data.vocab import load_vocabulary
from tests.service.data import oracle
from tests.service.data.raws import a_dense, a_raw_row, a_row, options, read, small, spec_of, write

rows_of_a_day = st.lists(a_row, min_size=1, max_size=8)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_extended_dataset_is_the_oracles_however_the_rows_are_cut(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("raw")
    sparse = {name: data.draw(options, name) for name in ("word", "code", "real", "tags", "list")}
    sparse["tags"] |= {"separator": ","}
    sparse["list"] |= {"multi": True}
    dense = {name: data.draw(a_dense, name) for name in ("x", "n")}
    days = data.draw(st.lists(rows_of_a_day, min_size=2, max_size=3), "days")
    parent, lineage = None, []
    for day, rows in enumerate(days):
        cut = data.draw(st.integers(0, len(rows)), "cut")
        files = [write(folder / f"a{day}.parquet", rows[:cut]), write(folder / f"b{day}.parquet", rows[cut:])]
        spec = spec_of({"train": files}, sparse=sparse, dense=dense)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(raw, "BATCH_ROWS", data.draw(st.integers(1, 5), "batch"))
            patch.setattr(vocab, "_PENDING", 3)
            schema = prepare(spec, folder / str(day), extend=parent, progress=False)
        lineage = [older for older in lineage if older != schema.fingerprint]
        assert schema == load_schema(folder / str(day))
        assert schema.ancestors == tuple(lineage)
        _check(folder / str(day), oracle.encode(rows, days[0], spec, *days[1 : day + 1]), spec)
        if parent:
            _check_values_keep_their_ids(parent, folder / str(day), files)
        parent = folder / str(day)
        lineage.append(schema.fingerprint)


def _check(dataset: Path, expected: dict[str, list[Any]], spec: Spec) -> None:
    """The training rows are the expected ones, and the counts are those of their ids."""
    found = read(dataset, "train")
    assert list(found) == list(expected)
    for name in expected:
        if name in spec.numbers:
            expected_floats = np.array(expected[name], np.float32)
            np.testing.assert_allclose(found[name], expected_floats, rtol=1e-5, atol=1e-6)
        else:
            assert found[name] == expected[name], name
    for name, column in spec.categories.items():
        ids = [i for each in found[name] for i in each] if column.lists else found[name]
        counts = load_vocabulary(dataset, name).counts
        assert counts.tolist() == np.bincount(np.array(ids, int), minlength=len(counts)).tolist()


def _check_values_keep_their_ids(old: Path, new: Path, files: list[str]) -> None:
    """An id that the old dataset gives is the one that the new one gives; numbers are the same, bit for bit."""
    before, after = load_schema(old), load_schema(new)
    for a, b in zip(before.sparse, after.sparse, strict=True):
        assert b.rows >= a.rows
        known = load_vocabulary(old, a.name).values
        assert known is None or load_vocabulary(new, a.name).values[: len(known)] == known
    for at, file in enumerate(files):
        if not raw.pq.read_metadata(file).num_rows:
            continue
        encode_file(old, before, Path(file), new / f"old-{at}")
        encode_file(new, after, Path(file), new / f"new-{at}")
        under_old, under_new = read(new, f"old-{at}"), read(new, f"new-{at}")
        for feature in before.sparse:
            pairs = zip(under_old.pop(feature.name), under_new.pop(feature.name), strict=True)
            for a_ids, b_ids in pairs if feature.multi else (([a], [b]) for a, b in pairs):
                assert all(a in (0, b) for a, b in zip(a_ids, b_ids, strict=True))
        assert under_old == under_new


def test_extending_with_the_same_rows_adds_nothing(tmp_path: Path) -> None:
    changes = {
        "dense": {"x": {"transform": "standardise"}, "n": {"transform": "bucketise", "nan": "missing"}},
        "sparse": {"word": {"min_count": 2}, "code": {"max_rows": 2}, "list": {"hash": 3, "multi": True}},
    }
    words = ["a", "b", "b", None, "c", "c"]
    files = {"train": write(tmp_path / "a.parquet", [a_raw_row(word=w, code=i) for i, w in enumerate(words)])}
    spec = spec_of(files, **changes)
    old = prepare(spec, tmp_path / "old", progress=False)
    for out in ("new", "old"):
        schema = prepare(spec, tmp_path / out, extend=tmp_path / "old", progress=False, overwrite=True)
        assert schema == old
    for path in (tmp_path / "old").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "new" / path.relative_to(tmp_path / "old")).read_bytes()


def test_the_cap_may_change_and_never_costs_an_old_value(tmp_path: Path) -> None:
    def of(words: str, max_rows: int) -> Spec:
        files = {"train": write(tmp_path / f"{words}.parquet", [a_raw_row(word=word) for word in words])}
        return spec_of(files, sparse={"word": {"max_rows": max_rows}})

    prepare(of("aaabbc", 4), tmp_path / "0", progress=False)
    for at, (words, max_rows, expected) in enumerate(
        [("ddd", 2, "abc"), ("fdde", 5, "abcd"), ("gff", 9, "abcdfg")]
    ):
        prepare(of(words, max_rows), tmp_path / f"{at + 1}", extend=tmp_path / f"{at}", progress=False)
        assert load_vocabulary(tmp_path / f"{at + 1}", "word").values.to_pylist() == list(expected)


DENSE = {"x": {"transform": "standardise"}, "n": {"transform": "bucketise", "nan": "missing"}}
SPARSE = {"word": {"hash": 5}, "tags": {"separator": ","}}


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"dense": {"n": DENSE["n"]}}, "dense column 1 is 'x', the spec's is none"),
        ({"dense": DENSE | {"n": {}}}, "dense column 2 is none, the spec's is 'n'"),
        (
            {"sparse": {"tags": {"separator": ","}, "word": {"hash": 5}}},
            "feature 2 is 'word', the spec's is 'tags'",
        ),
        ({"sparse": SPARSE | {"code": {}}}, "feature 4 is none, the spec's is 'code'"),
        ({"sparse": SPARSE | {"word": {"hash": 6}}}, r"sparse\.word\.hash is 5, the spec's is 6"),
        ({"sparse": SPARSE | {"word": {}}}, r"sparse\.word\.hash is 5, the spec's is none"),
        ({"sparse": SPARSE | {"tags": {}}}, r"sparse\.tags\.lists is True, the spec's is False"),
        (
            {"sparse": SPARSE | {"tags": {"separator": " "}}},
            r"sparse\.tags\.separator is ',', the spec's is ' '",
        ),
        (
            {"dense": DENSE | {"x": {"transform": "log1p"}}},
            "transform is 'standardise', the spec's is 'log1p'",
        ),
        ({"dense": DENSE | {"n": DENSE["n"] | {"fill": 1}}}, r"dense\.n\.fill is none, the spec's is 1\.0"),
        (
            {"defaults": {"sparse": {"hash": 9}}, "sparse": SPARSE},
            r"sparse\.n\.hash is none, the spec's is 9",
        ),
        (
            {"sparse": SPARSE | {"word": {"source": "code", "hash": 5}}},
            r"sparse\.word\.source is none, .* 'code'",
        ),
        (
            {"sparse": SPARSE | {"word": {"calendar": "hour", "hash": 5}}},
            r"calendar is none, the spec's is 'hour'",
        ),
        ({"labels": ["z", "y"]}, "label 1 is 'y', the spec's is 'z'"),
        ({"weight": None}, "weight is 'w', the spec's is none"),
        ({"missing": [""]}, r"missing is \['', 'NA'\], the spec's is \[''\]"),
    ],
)
def test_a_spec_that_would_change_the_meaning_is_refused_in_one_line(
    tmp_path: Path, changes: dict[str, Any], difference: str
) -> None:
    original = {"dense": DENSE, "sparse": SPARSE}
    prepare(small(tmp_path, **original), tmp_path / "old", progress=False)
    spec = small(tmp_path, **original | changes)
    with pytest.raises(ConfigError, match=f"old: its .*{difference}; .*drop --extend") as caught:
        prepare(spec, tmp_path / "new", extend=tmp_path / "old", progress=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_only_a_dataset_can_be_extended(tmp_path: Path) -> None:
    spec = small(tmp_path)
    with pytest.raises(DataError, match="old: no such dataset"):
        prepare(spec, tmp_path / "new", extend=tmp_path / "old", progress=False)
    prepare(spec, tmp_path / "old", progress=False)
    (tmp_path / "old" / "transform.json").write_text("{")
    with pytest.raises(DataError, match=r"transform\.json: not readable"):
        prepare(spec, tmp_path / "new", extend=tmp_path / "old", progress=False)


def test_the_command_extends_a_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, word in (("old", "a"), ("new", "b")):
        file = write(tmp_path / f"{name}.parquet", [a_raw_row(word=word)])
        spec = {"files": {"train": file}, "labels": "y", "sparse": ["word"]}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(spec))
    old, new = str(tmp_path / "old"), str(tmp_path / "new")
    assert main(["prepare", f"{old}.yaml", "--out", old]) == 0
    assert main(["prepare", f"{new}.yaml", "--out", new, "--extend", old]) == 0
    assert load_vocabulary(tmp_path / "new", "word").values.to_pylist() == ["a", "b"]
    assert load_schema(tmp_path / "new").ancestors == (load_schema(tmp_path / "old").fingerprint,)
    assert capsys.readouterr().err == ""
