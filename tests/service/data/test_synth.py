"""Laws of `sparta synth`: what the rows look like, that they are a pure function, that the labels are the model's."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from sparta.models.errors import ConfigError
from sparta.service.data.planted import CHUNK, COUNTS, FIELDS, MOST_TAGS, TAGS, Attainable, Planted
from sparta.service.data.spec import load_spec
from sparta.service.data.synth import LABEL, SEPARATOR, synth

ROWS = 100_000


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("synth") / "raw"
    return out, synth(out, rows=ROWS, seed=1)


@pytest.fixture(scope="module")
def train(made: tuple[Path, dict[str, Any]]) -> dict[str, Any]:
    return pq.read_table(made[0] / "train.parquet").to_pydict()


def test_splits_are_eight_one_one(made: tuple[Path, dict[str, Any]]) -> None:
    rows = {split: pq.read_metadata(made[0] / f"{split}.parquet").num_rows for split in made[1]["rows"]}
    assert rows == made[1]["rows"] == {"train": 80_000, "valid": 10_000, "test": 10_000}


def test_a_quarter_is_positive(train: dict[str, Any]) -> None:
    assert set(train[LABEL]) == {0, 1}
    assert np.mean(train[LABEL]) == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("seed", [2, 3, 4])
def test_every_seed_is_about_equally_hard(seed: int) -> None:
    rows, attainable = Planted(seed).rows("test", 0), Attainable()
    attainable.add(rows.probability, rows.label)
    assert rows.label.mean() == pytest.approx(0.25, abs=0.01)
    assert attainable.result()[0]["auc"] == pytest.approx(0.81, abs=0.02)


def test_dense_columns_are_skewed_counts_some_missing(train: dict[str, Any]) -> None:
    for count in COUNTS:
        values = [value for value in train[count.name] if value is not None]
        assert 1 - len(values) / len(train[LABEL]) == pytest.approx(count.missing, abs=0.01)
        assert min(values) >= 0
        standard = (values - np.mean(values)) / np.std(values)
        assert (standard**3).mean() > 1


def test_categories_are_eight_hex_digits_some_missing(train: dict[str, Any]) -> None:
    for field in FIELDS:
        values = [value for value in train[field.name] if value is not None]
        assert 1 - len(values) / len(train[LABEL]) == pytest.approx(field.missing, abs=0.01)
        distinct = set(values)
        assert len(distinct) <= field.values
        assert all(len(value) == 8 and set(value) <= set("0123456789abcdef") for value in distinct)


def test_frequencies_follow_the_power_law(train: dict[str, Any]) -> None:
    """On a log-log plot of the sixty most frequent values of a large field; the first is off by rounding."""
    for name in ("C3", "C10", "C21"):
        _, count = np.unique([value for value in train[name] if value is not None], return_counts=True)
        count = np.sort(count)[::-1][3:60]
        slope = np.polyfit(np.log(np.arange(4, 61)), np.log(count), 1)[0]
        assert slope == pytest.approx(-1.3, abs=0.1)


def test_tags_are_joined_texts_and_none_is_null(train: dict[str, Any]) -> None:
    lists = [[] if text is None else text.split(SEPARATOR) for text in train[TAGS.name]]
    lengths = np.bincount([len(tags) for tags in lists], minlength=MOST_TAGS + 1)
    np.testing.assert_allclose(lengths / len(lists), 1 / (MOST_TAGS + 1), atol=0.01)
    distinct = {tag for tags in lists for tag in tags}
    assert 500 < len(distinct) <= TAGS.values
    assert all(len(tag) == 8 for tag in distinct)


def test_files_hold_the_generator_s_rows(train: dict[str, Any]) -> None:
    """Values and texts correspond one to one, row by row."""
    rows = Planted(1).rows("train", 0)
    assert train[LABEL][:CHUNK] == rows.label.tolist()
    for f in (0, 2, 21):
        texts = train[FIELDS[f].name][:CHUNK]
        pairs = set(zip(rows.values[f].tolist(), texts, strict=True))
        assert len(pairs) == len({value for value, _ in pairs}) == len({text for _, text in pairs})
        assert all((value == -1) == (text is None) for value, text in pairs)
    first = train["I2"][:CHUNK]
    assert [-1 if value is None else value for value in first] == rows.dense[1].tolist()


def test_same_seed_same_bytes_and_another_seed_other_rows(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        synth(tmp_path / name, rows=2_000, seed=seed)
    for file in ("train.parquet", "valid.parquet", "test.parquet", "planted.json", "prepare.yaml"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert (tmp_path / "a" / "train.parquet").read_bytes() != (tmp_path / "c" / "train.parquet").read_bytes()


def test_a_chunk_does_not_depend_on_others_nor_on_the_rows_asked_for(tmp_path: Path) -> None:
    alone = Planted(7).rows("valid", 3)
    for again in list(Planted(7).split("valid", 4 * CHUNK))[3:]:
        np.testing.assert_array_equal(again.values, alone.values)
        np.testing.assert_array_equal(again.label, alone.label)
    for rows in (1_000, 3_000):
        synth(tmp_path / str(rows), rows=rows, seed=7)
    for split in ("train", "valid", "test"):
        few, more = (pq.read_table(tmp_path / str(rows) / f"{split}.parquet") for rows in (1_000, 3_000))
        assert more.slice(0, len(few)).equals(few)


def test_labels_are_drawn_with_the_planted_probability() -> None:
    rows = Planted(1).rows("train", 1)
    order = np.argsort(rows.probability)
    for part in np.array_split(order, 20):
        p = rows.probability[part]
        error = np.sqrt((p * (1 - p)).sum()) / len(part)
        assert rows.label[part].mean() == pytest.approx(p.mean(), abs=4 * error)


def test_the_logit_is_the_sum_over_fields_and_pairs() -> None:
    """The slow, obvious double loop on a few rows."""
    model = Planted(3)
    *drawn, _ = model._draw("train", 0)
    first, pairs = model._parts(*drawn)
    effects = list(model._field_effects(*drawn[:3]))
    for n in range(5):
        w = [effect[0, n] for effect in effects]
        v = [effect[1:, n] - centre for effect, centre in zip(effects, model.centre, strict=True)]
        for d, count in enumerate(drawn[3][:, n]):
            z = (np.log1p(count) - model.z_mean[d]) / model.z_std[d] if count >= 0 else 0.0
            w.append(z * model.dense_effects[0, d])
            v.append(z * model.dense_effects[1:, d])
        products = [v[i] @ v[j] for i in range(len(v)) for j in range(i + 1, len(v))]
        assert first[n] == pytest.approx(sum(w), abs=1e-4)
        assert pairs[n] == pytest.approx(sum(products), abs=1e-4)


def test_attainable_is_the_metric_of_the_planted_probabilities(made: tuple[Path, dict[str, Any]]) -> None:
    (rows,) = Planted(1).split("test", made[1]["rows"]["test"])
    p, y = rows.probability, rows.label == 1
    auc = (p[y][:, None] > p[~y]).mean() + (p[y][:, None] == p[~y]).mean() / 2
    logloss = -np.log(np.where(y, p, 1 - p)).mean()
    attainable = made[1]["attainable"][LABEL]
    assert attainable["auc"] == pytest.approx(auc, abs=made[1]["auc_error"] + 1e-12)
    assert made[1]["auc_error"] < 1e-5
    assert attainable["logloss"] == pytest.approx(logloss, rel=1e-9)


def test_the_spec_beside_the_files_names_every_column(made: tuple[Path, dict[str, Any]]) -> None:
    out, facts = made
    spec = load_spec(out / "prepare.yaml")
    assert tuple(spec.dense) == tuple(count.name for count in COUNTS)
    assert tuple(spec.sparse) == (*(field.name for field in FIELDS), TAGS.name)
    assert spec.sparse[TAGS.name].separator == SEPARATOR
    assert spec.attainable == facts["attainable"]
    assert [len(files) for files in spec.paths().values()] == [1, 1, 1]
    assert json.loads((out / "planted.json").read_text()) == facts


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path; from sparta.service.data.synth import synth; "
        "synth(Path(sys.argv[1]), rows=int(sys.argv[2])); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )

    def peak(rows: int) -> int:
        command = [sys.executable, "-c", code, str(tmp_path / str(rows)), str(rows)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])

    assert peak(8 * CHUNK) < 1.5 * peak(CHUNK)


def test_bad_arguments_are_refused_and_leave_everything_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="mine: exists and is not the work of"):
        synth(tmp_path / "mine", rows=1_000)
    with pytest.raises(ConfigError, match="--rows 9"):
        synth(tmp_path / "new", rows=9)
    with pytest.raises(ConfigError, match="--seed -1"):
        synth(tmp_path / "new", rows=1_000, seed=-1)
    with pytest.raises(ConfigError, match="cannot be written"):
        synth(tmp_path / "mine" / "thesis.txt" / "new", rows=1_000)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_an_earlier_output_is_replaced(tmp_path: Path) -> None:
    synth(tmp_path / "raw", rows=1_000)
    synth(tmp_path / "raw", rows=2_000)
    assert pq.read_metadata(tmp_path / "raw" / "train.parquet").num_rows == 1_600
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]
