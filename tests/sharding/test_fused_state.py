"""The state of FBGEMM's optimizers: what it is called, and what it takes."""

from itertools import product

import pytest
import torch

from sparta.models.errors import DataError
from sparta.sharding.collectives import gather
from sparta.sharding.engines import Fbgemm
from sparta.sharding.fused_state import FusedTables
from sparta.sharding.shard import shard
from sparta.sharding.state import LogicalTable, check_names
from tests.pool import Pool
from tests.sharding import toys
from tests.sharding.whole import assembled

KINDS = Fbgemm.sharding_types


def fused(kind: str, optimizer: str, ranks: int, dim: int) -> FusedTables:
    model = toys.model(dim)
    optimizers = toys.optimizers(model.embeddings.specs, optimizer)
    plan = toys.planned(kind, optimizer, ranks=ranks, local_ranks=min(2, ranks), dim=dim)
    sharded = shard(model, plan, optimizers=optimizers, device=torch.device("cpu"), seed=toys.SEED)
    return FusedTables(sharded.model, sharded.plan, sharded.optimizers)


def shapes(rank: int, ranks: int, kind: str, optimizer: str, dim: int) -> dict[str, tuple[int, ...]]:
    return {
        name.removeprefix("optim/"): tuple(value.shape)
        for name, value in fused(kind, optimizer, ranks, dim).state_dict().items()
        if not name.startswith(("optim/C2", "optim/tags", "optim/few"))
    }


@pytest.mark.parametrize(
    "kind, optimizer, dim, expected",
    [
        ("row_wise", "sgd", 10, {}),
        ("column_wise", "adagrad", 10, {"C1/sum": (37, 10), "C1.wide/sum": (37, 1)}),
        ("table_wise", "rowwise_adagrad", 8, {"C1/sum": (37, 1), "C1.wide/sum@0:4": (37, 1)}),
        ("row_wise", "rowwise_adagrad", 10, {"C1/sum@0:12": (37, 1), "C1.wide/sum@0:4": (37, 1)}),
        ("column_wise", "rowwise_adagrad", 8, {"C1/sum@0:4,4:8": (37, 2), "C1.wide/sum@0:4": (37, 1)}),
    ],
)
def test_an_accumulator_is_named_by_its_columns_where_they_are_not_just_the_tables(
    pool: Pool, kind: str, optimizer: str, dim: int, expected: dict[str, tuple[int, ...]]
) -> None:
    # On all ranks, whatever they hold.
    assert pool.run(2, shapes, kind, optimizer, dim) == [{**expected, "step": ()}] * 2


def whole(rank: int, ranks: int) -> None:
    """Whole tensors go in, and come out of the windows of all ranks."""
    for kind, optimizer in product(KINDS, ("adagrad", "rowwise_adagrad")):
        tables = fused(kind, optimizer, ranks, 10)
        torch.manual_seed(1)
        given = {name: torch.rand(tuple(value.shape)) for name, value in tables.state_dict().items()}
        given["optim/step"] = torch.tensor(7)
        tables.load_state_dict(given)
        assert tables.steps == 7
        for name, value in tables.state_dict().items():
            if isinstance(value, LogicalTable):
                windows = [window for part in gather(value.windows) for window in part]
                found = assembled(tuple(value.shape), windows)
                assert torch.equal(found, given[name].double()), (name, kind, optimizer)


def test_whole_tensors_are_taken_under_any_plan(pool: Pool) -> None:
    pool.run(2, whole)


@pytest.mark.parametrize(
    "saved, job, theirs, ours",
    [
        ("sum@0:4,4:8", "sum", "of a row's columns 0:4,4:8", "of whole rows"),
        ("sum", "sum@0:4,4:8", "of whole rows", "of a row's columns 0:4,4:8"),
        ("sum@0:8,8:16", "sum@0:4,4:16", "of a row's columns 0:8,8:16", "of a row's columns 0:4,4:16"),
    ],
)
def test_accumulators_of_other_columns_are_refused_with_a_way_out(
    saved: str, job: str, theirs: str, ours: str
) -> None:
    with pytest.raises(DataError) as raised:
        check_names([f"optim/C1/{job}", "optim/step"], [f"optim/C1/{saved}", "optim/step"])
    message = str(raised.value)
    assert message.startswith("optim/C1/sum")
    assert f"the saved accumulators are {theirs}, the job's are {ours};" in message
    assert "load the weights only" in message
    assert "\n" not in message


def test_a_table_that_has_no_accumulator_is_not_said_to_have_others() -> None:
    with pytest.raises(DataError, match=r"optim/C1/sum@0:12 is missing in the saved state: .*another job"):
        check_names(["optim/C1/sum@0:12"], ["optim/C1x/sum@0:4"])
