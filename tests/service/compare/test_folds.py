"""Folds of a small data set."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparta.models.errors import ConfigError
from sparta.models.schema import SPLITS
from sparta.service.compare.folds import cut
from sparta.service.compare.study import FOLDS
from sparta.service.data.spec import Spec, load_spec

ROWS = {"train": 41, "valid": 13, "test": 9}
COLUMNS = "\nlabels: click\nsparse: {id: }\n"


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    numbers = np.split(np.arange(sum(ROWS.values())), np.cumsum(list(ROWS.values()))[:-1])
    for split, of_split in zip(ROWS, numbers, strict=True):
        pq.write_table(pa.table({"id": of_split, "click": of_split % 2}), tmp_path / f"{split}.parquet")
    text = "files: {train: train.parquet, valid: valid.parquet, test: test.parquet}"
    (tmp_path / "prepare.yaml").write_text(text + COLUMNS)
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


def test_files_that_are_no_three_splits_cannot_be_cut(spec: Spec, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("files: train.parquet\nsplit: {valid: 0.1, test: 0.1}" + COLUMNS)
    with pytest.raises(ConfigError, match=r"needs a spec with files: .train, valid, test."):
        cut(load_spec(tmp_path / "other.yaml"), 1, tmp_path)
