"""Five folds of a small data set: every row is tested once, by models that did not learn from it.

The files are joined and dealt out to ten parts, row by row. Of fold k two parts are the test split, the next is
the validation split, and the other seven are trained on. Each fold is a data set of the study like any other, with
a choice of its own by its own validation split.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sparta.models.errors import ConfigError
from sparta.models.schema import SPLITS
from sparta.service.compare.study import FOLDS
from sparta.service.data.spec import Spec

PARTS = 10


def split_of_parts(fold: int) -> list[str]:
    """The split that each of the parts is in, fold 1 to FOLDS."""
    splits = ["train"] * PARTS
    first = (fold - 1) * (PARTS // FOLDS)
    splits[first] = splits[first + 1] = "test"
    splits[(first + 2) % PARTS] = "valid"
    return splits


def cut(spec: Spec, fold: int, folder: Path) -> list[str]:
    """Write a fold of a spec's Parquet files; the edits that have the spec read it.

    Raises:
        ConfigError: the spec does not name Parquet files for each of the splits.
    """
    files = spec.paths()
    if set(files) != set(SPLITS) or any(
        path.suffix != ".parquet" for paths in files.values() for path in paths
    ):
        raise ConfigError(
            "fold: needs a spec with files: {train, valid, test}, all of them Parquet; drop fold"
        )
    whole = pa.concat_tables([pq.read_table(path) for split in SPLITS for path in files[split]])
    part_of_row, edits = np.arange(len(whole)) % PARTS, []
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        parts = [part for part, of in enumerate(split_of_parts(fold)) if of == split]
        pq.write_table(whole.filter(pa.array(np.isin(part_of_row, parts))), folder / f"{split}.parquet")
        edits.append(f"files.{split}={folder / split}.parquet")
    return edits
