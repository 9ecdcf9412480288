"""The datasets that a study makes: once, where its cells look for them, folds like any other."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparta.models.errors import DataError
from sparta.models.schema import load_schema
from sparta.service.compare.cells import tuning
from sparta.service.compare.datasets import prepare_all
from tests.service.compare import toys

SPEC = (
    "files: {train: train.parquet, valid: valid.parquet, test: test.parquet}\nlabels: click\nsparse: {id: }\n"
)
FOLD = {"job": "job.yaml", "prepare": "spec.yaml"}


def write_raw(place: Path) -> None:
    """Three files of 40 rows, and the spec that names them."""
    for number, split in enumerate(("train", "valid", "test")):
        ids = np.arange(40 * number, 40 * number + 40)
        pq.write_table(pa.table({"id": ids, "click": ids % 2}), place / f"{split}.parquet")
    (place / "spec.yaml").write_text(SPEC)


def test_folds_and_synthetic_data_are_made_once_where_the_cells_look(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_raw(tmp_path)
    data = {
        "whole": FOLD,
        "fold1": {**FOLD, "fold": 1},
        "fold2": {**FOLD, "fold": 2},
        "planted": {"job": "job.yaml", "synth": {"rows": 1000, "seed": 3}},
        "there": {"job": "job.yaml"},
    }
    folder = toys.folder(tmp_path, data=data)
    prepare_all(folder, data)
    splits = {}
    for name in data:
        cell = tuning(folder.study, name, "dcn", "adam")[0]
        splits[name] = load_schema(folder.job(cell).data.path).splits
        assert folder.key(cell)
    assert splits["whole"] == {"train": 40, "valid": 40, "test": 40}
    assert splits["fold1"] == splits["fold2"] == {"train": 84, "valid": 12, "test": 24}
    assert splits["planted"] == {"train": 800, "valid": 100, "test": 100}
    assert splits["there"]["test"] == toys.ROWS
    assert len({folder.dataset(name) for name in ("whole", "fold1", "fold2")}) == 3
    assert f"{folder.dataset('fold1')}: train 84, valid 12, test 24 rows\n" in capsys.readouterr().out

    assert not list((folder.path / "raw").glob("*"))
    prepare_all(folder, data)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("fold", [None, 2])
def test_raw_files_that_changed_since_are_told_and_those_that_are_gone_are_not_missed(
    tmp_path: Path, fold: int | None
) -> None:
    write_raw(tmp_path)
    folder = toys.folder(tmp_path, data={"d": {**FOLD, "fold": fold}})
    prepare_all(folder, ["d"])
    prepare_all(folder, ["d"])
    pq.write_table(pa.table({"id": np.arange(9), "click": np.arange(9) % 2}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"^data\.d: .*/train\.parquet is another than when .*; remove "):
        prepare_all(folder, ["d"])
    for path in tmp_path.glob("*.parquet"):
        path.unlink()
    prepare_all(folder, ["d"])
