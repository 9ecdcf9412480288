"""Folds of a small data set, and what the table makes of them."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import quality_table
from benchmarks.quality_folds import FOLDS, SPLITS, cut
from sparta.service.data.spec import Spec, load_spec
from tests.benchmarks.test_quality import result

ROWS = {"train": 41, "valid": 13, "test": 9}


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    numbers = np.split(np.arange(sum(ROWS.values())), np.cumsum(list(ROWS.values()))[:-1])
    for split, of_split in zip(ROWS, numbers, strict=True):
        pq.write_table(pa.table({"id": of_split, "click": of_split % 2}), tmp_path / f"{split}.parquet")
    text = "files: {train: train.parquet, valid: valid.parquet, test: test.parquet}\nlabels: click\nsparse: {id: }\n"
    (tmp_path / "prepare.yaml").write_text(text)
    return load_spec(tmp_path / "prepare.yaml")


def test_every_row_is_tested_once_by_models_that_did_not_learn_from_it(spec: Spec, tmp_path: Path) -> None:
    tested: Counter[int] = Counter()
    for fold in range(1, FOLDS + 1):
        edits = cut(spec, fold, tmp_path / str(fold))
        read = load_spec(tmp_path / "prepare.yaml", edits).paths()
        rows = {split: pq.read_table(read[split][0])["id"].to_pylist() for split in SPLITS}
        assert sorted(rows["train"] + rows["valid"] + rows["test"]) == list(range(sum(ROWS.values())))
        assert len(rows["train"]) > 4 * len(rows["valid"]) > 0
        tested.update(rows["test"])
    assert tested == Counter(range(sum(ROWS.values())))


def test_folds_stand_in_for_the_one_split_in_the_mean_gain() -> None:
    folds = [
        {**result(f"criteo_fold{k}", helen=(0.01 * k, 0.002), helen_every2=(0.02, 0.002)), "test_rows": 100}
        for k in (1, 2, 3, 4)
    ]
    whole = [
        result("anime", helen=(0.005, 0.0), sam=(0.0, 0.0), helen_every2=(0.005, 0.0)),
        result("criteo_tb80k", helen=(-0.5, 0.1), sam=(0.0, 0.0), helen_every2=(0.0, 0.1)),
    ]
    first, mean, cheaper = quality_table.folded(whole, folds, {"helen_every2": 1.39})
    assert first == (
        "criteo_tb80k in 4 folds, 400 test rows in all: HELEN +.0250 [+.0230, +.0270]; "
        "HELEN_EVERY2 +.0200 [+.0180, +.0220]."
    )
    assert mean == "Mean gain over criteo_tb80k in 4 folds, anime: Helen +.0150 [+.0140, +.0160]."
    assert cheaper == "HELEN_EVERY2: +.0125 [+.0115, +.0135], 83% of it, at 1.39x the plain step."
