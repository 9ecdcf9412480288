"""The short way of one rank, against TorchRec's own: every bit alike."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torchrec import KeyedJaggedTensor

from sparta.sharding import shard as sharding_of_models
from sparta.sharding.engines import TableOptimizer
from sparta.sharding.rows import bags
from sparta.sharding.rows.alone import repeated
from sparta.sharding.rows.step import RowsStep
from tests.pool import Pool
from tests.sharding import toys
from tests.sharding.rows.test_step import LR, RHO, sharded_rows
from tests.sharding.test_shard import whole_tables

Way = tuple[int, list[Tensor], dict[str, Tensor], dict[str, Tensor]]


@given(st.data())
def test_repeats_as_a_permutation_does(data: st.DataObject) -> None:
    keys, samples, times = (data.draw(st.integers(1, 4)) for _ in range(3))
    size = keys * samples
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size)))
    total = int(lengths.sum())
    weights = torch.rand(total) if data.draw(st.booleans()) else None
    sparse = KeyedJaggedTensor([f"k{n}" for n in range(keys)], torch.arange(total), weights, lengths)
    found, expected = repeated(sparse, times), sparse.permute(list(range(keys)) * times)
    assert (found.keys(), found.stride()) == (expected.keys(), samples)
    for part in ("values", "lengths", "offsets", "weights_or_none"):
        torch.testing.assert_close(getattr(found, part)(), getattr(expected, part)(), rtol=0, atol=0)


SEVERAL = {"C1": "row_wise", "C2": "table_wise", "tags": "data_parallel", "few": "table_wise"}


def trained(rank: int, ranks: int, sharding: str, short: bool) -> Way:
    """How often the short way was taken, logits outside of a step, tables and dense parameters after 3 steps.

    Args:
        sharding: of all tables, or "mixed" for SEVERAL.
        short: or else as TorchRec does it, DistributedDataParallel too.
    """
    with (
        patch.object(toys, "MIXED", SEVERAL),
        patch.object(bags, "at_home", wraps=bags.at_home) as taken,
        patch.object(bags, "is_alone", bags.is_alone if short else lambda _: False),
        patch.object(sharding_of_models, "_Alone", sharding_of_models._Alone if short else lambda: None),
    ):
        of = sharded_rows(TableOptimizer("helen", LR, rho=RHO), ranks, sharding)
        dense = torch.optim.Adam(of.dense_parameters().values(), lr=toys.DENSE_LR)
        step = RowsStep(of.module, dense)
        wrapped = [part for part in of.module.modules() if isinstance(part, DistributedDataParallel)]
        assert len(wrapped) == (0 if short else 1)
        seen = []
        for number in range(3):
            batch = toys.batch(number, rank, ranks)
            step(lambda: toys.global_loss(of(batch), batch, number, ranks))  # noqa: B023
            with torch.no_grad():
                seen.append(of(batch))
        parameters = {name: p.detach().clone() for name, p in of.dense_parameters().items()}
        return taken.call_count, seen, whole_tables(of), parameters


@pytest.mark.parametrize(
    "sharding", ["table_wise", "row_wise", "table_row_wise", "data_parallel", "column_wise", "mixed"]
)
def test_is_torchrecs_way(pool: Pool, sharding: str) -> None:
    (count, *found), (none, *expected) = (
        pool.run(1, trained, sharding, short, local_ranks=1)[0] for short in (True, False)
    )
    assert none == 0
    # Columns that were split are put together by TorchRec.
    assert count == (0 if sharding == "column_wise" else 3)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
