"""What was skipped is counted with the batch it was skipped in, and there once."""

from dataclasses import replace

import torch

from sparta.models.batch import Flaw
from tests.models.toys import toy_batch, toy_schema


def test_skipped_rows_go_with_a_batch_but_not_with_its_share() -> None:
    flaw = Flaw("part.parquet", 3, "C1", 7, "id 9 is outside its table of 9 rows")
    batch = replace(toy_batch(toy_schema(), 8, seed=1), skipped={flaw: 2})
    assert batch.to(torch.device("cpu")).skipped == {flaw: 2}
    assert batch.every(2).skipped == {}


def test_a_flaw_reads_as_one_place() -> None:
    flaw = Flaw("a/part.parquet", 3, "C1", 7, "id 9 is outside its table of 9 rows")
    assert str(flaw) == "a/part.parquet: row group 3, column 'C1', row 7: id 9 is outside its table of 9 rows"
    assert (
        str(replace(flaw, column="*", row=0, rule="not readable"))
        == "a/part.parquet: row group 3: not readable"
    )
