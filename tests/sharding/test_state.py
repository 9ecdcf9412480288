"""Laws of the saved form: what one plan saves, any other plan on any number of ranks reads bit for bit."""

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from sparta.models.errors import DataError
from sparta.sharding import state
from sparta.sharding.engines import SHARDING_TYPES
from sparta.sharding.state import LogicalTable, Window
from tests.pool import Pool
from tests.sharding import toys
from tests.sharding.test_shard import sharded_toy, train, whole_tables

CONFIGS = [(sharding, ranks) for sharding in SHARDING_TYPES for ranks in (1, 2, 4)]


def engine(sharding: str) -> str:
    """Both, by turns; replicas are of engine rows."""
    return "rows" if sharding in ("row_wise", "data_parallel") else "fbgemm"


def save_all(rank: int, ranks: int, folder: Path) -> dict[str, dict[str, Tensor]]:
    """Train a little and save under every plan; the whole weights by plan."""
    weights = {}
    for number, sharding in enumerate(SHARDING_TYPES):
        sharded = sharded_toy(sharding, "sgd", ranks, lr=0.1 * (1 + number) + ranks, engine=engine(sharding))
        train(sharded, rank, ranks, 2)
        dcp.save(sharded.state_dict(), checkpoint_id=str(folder / f"{sharding}-{ranks}"))
        weights[sharding] = everything(sharded)
    return weights


def everything(sharded) -> dict[str, Tensor]:
    dense = {k: v.clone() for k, v in sharded.state_dict().items() if not isinstance(v, LogicalTable)}
    return {**whole_tables(sharded), **dense}


def load_all(rank: int, ranks: int, folder: Path) -> dict[tuple[str, str, int], dict[str, Tensor]]:
    """Under every plan, load what the next plan saved on each number of ranks."""
    loaded = {}
    for number, sharding in enumerate(SHARDING_TYPES):
        sharded = sharded_toy(sharding, "sgd", ranks, engine=engine(sharding))
        source = SHARDING_TYPES[(number + 1) % len(SHARDING_TYPES)]
        for saved_ranks in (1, 2, 4):
            state = sharded.state_dict()
            dcp.load(state, checkpoint_id=str(folder / f"{source}-{saved_ranks}"))
            sharded.load_state_dict(state)
            loaded[sharding, source, saved_ranks] = everything(sharded)
    return loaded


def test_any_plan_reads_what_another_saved(pool: Pool, tmp_path: Path) -> None:
    saved = {ranks: pool.run(ranks, save_all, tmp_path, local_ranks=min(2, ranks))[0] for ranks in (1, 2, 4)}
    pairs = 0
    for ranks in (1, 2, 4):
        for found in pool.run(ranks, load_all, tmp_path, local_ranks=min(2, ranks)):
            for (_, source, saved_ranks), weights in found.items():
                expected = saved[saved_ranks][source]
                assert weights.keys() == expected.keys()
                for name, tensor in expected.items():
                    assert torch.equal(weights[name], tensor), (name, source, saved_ranks, ranks)
                pairs += 1
    assert pairs == (1 + 2 + 4) * len(SHARDING_TYPES) * 3


def whole_in_one_process(rank: int, ranks: int, folder: Path) -> bool:
    """A checkpoint read into plain tensors, as a tool without ranks would."""
    sharded = sharded_toy("row_wise", "sgd", ranks)
    train(sharded, rank, ranks, 2)
    dcp.save(sharded.state_dict(), checkpoint_id=str(folder))
    expected = everything(sharded)
    plain = {
        name: torch.empty(tuple(value.shape), dtype=value.dtype)
        for name, value in sharded.state_dict().items()
    }
    dcp.load(plain, checkpoint_id=str(folder), no_dist=True)
    other = sharded_toy("column_wise", "sgd", ranks)
    other.load_state_dict(plain)
    found = everything(other)
    return all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_checkpoint_is_plain_unpadded_tensors(pool: Pool, tmp_path: Path) -> None:
    assert all(pool.run(2, whole_in_one_process, tmp_path / "saved"))


def shapes(rank: int, ranks: int) -> tuple[dict[str, tuple[int, ...]], list[str], set[str]]:
    sharded = sharded_toy("row_wise", "sgd", ranks)
    state = sharded.state_dict()
    return (
        {name: tuple(value.shape) for name, value in state.items() if name.startswith("tables/")},
        [name for name in state if name.startswith("dense/")],
        set(sharded.dense_parameters()),
    )


def test_names_and_shapes_are_the_users(pool: Pool) -> None:
    tables, dense, parameters = pool.run(2, shapes)[1]
    expected = {f"tables/{table.name}": (table.rows, table.dim) for table in toys.model().embeddings.specs}
    assert tables == expected
    assert expected["tables/C1.wide"] == (37, 1)
    assert "dense/deep.linears.0.weight" in dense
    assert "dense/deep.norms.0.running_mean" in dense
    assert {name.removeprefix("dense/") for name in dense if "running" not in name} == parameters


def refused(rank: int, ranks: int) -> list[str]:
    sharded = sharded_toy("table_wise", "sgd", ranks)
    state = sharded.state_dict()
    missing = {name: value for name, value in state.items() if name != "tables/C1"}
    odd = {**state, "tables/C9": torch.zeros(2, 2)}
    wide = {**state, "tables/C1": torch.zeros(37, 12)}
    dense = {**state, "dense/deep.last.bias": torch.zeros(2)}
    messages = []
    for bad in (missing, odd, wide, dense):
        with pytest.raises(DataError) as raised:
            sharded.load_state_dict(bad)
        messages.append(str(raised.value))
    return messages


def test_weights_of_another_job_are_refused(pool: Pool) -> None:
    for message, words in zip(
        pool.run(1, refused)[0],
        (
            "tables/C1 is missing in the saved state",
            "tables/C9 is not in the model",
            "tables/C1 is (37, 12) in the saved state, (37, 10) in the model",
            "dense/deep.last.bias is (2,) in the saved state, (1,) in the model",
        ),
        strict=True,
    ):
        assert words in message


@pytest.mark.parametrize("block_bytes", [1, 40, 64, 1 << 20])
def test_tables_are_stored_in_blocks_of_rows_whatever_reads_them(
    pool: Pool, tmp_path: Path, block_bytes: int
) -> None:
    assert pool.run(1, in_blocks, str(tmp_path / "state"), block_bytes) == [True]


def in_blocks(rank: int, ranks: int, folder: str, block_bytes: int) -> bool:
    """Whether a table of 7 rows comes back from blocks of one size into windows read by blocks of another."""
    whole = torch.arange(7.0 * 3).reshape(7, 3)

    def table(values: Tensor) -> LogicalTable:
        return LogicalTable(7, 3, [Window(0, 0, values[:4]), Window(4, 0, values[4:])])

    before, found = state.BLOCK_BYTES, torch.zeros(7, 3)
    try:
        state.BLOCK_BYTES = block_bytes
        dcp.save({"t": table(whole)}, checkpoint_id=folder)
        state.BLOCK_BYTES = 24
        dcp.load({"t": table(found)}, checkpoint_id=folder)
    finally:
        state.BLOCK_BYTES = before
    return torch.equal(found, whole)
