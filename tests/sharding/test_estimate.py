"""Our byte estimates against the bytes that sharding and training really take."""

import pytest
import torch

from sparta.sharding.engines import ENGINES, TableOptimizer
from sparta.sharding.human import human
from sparta.sharding.rows.bags import row_collections
from sparta.sharding.rows.learner import Pass
from sparta.sharding.rows.tables import RowTables
from sparta.sharding.state import sharded_collections
from tests.pool import Pool
from tests.sharding import toys
from tests.sharding.test_shard import sharded_toy

Found = tuple[int, int, int, int]


def measured(rank: int, ranks: int, sharding: str | None, optimizer: str) -> tuple[Found, Found]:
    """(weights, optimizer state, buffers, received) of this rank: estimated, then measured in bytes."""
    sharded = sharded_toy(sharding, optimizer, ranks)
    shards = [shard for table in sharded.plan.tables for shard in table.shards if shard.rank == rank]
    estimate = (
        sum(shard.bytes.weights for shard in shards),
        sum(shard.bytes.optimizer for shard in shards),
        sum(shard.bytes.buffers for shard in shards),
        sharded.plan.received_bytes,
    )
    weights = state = buffers = received = 0

    def note(module, inputs, pooled) -> None:
        nonlocal buffers
        for kernel, ids in zip(module._emb_modules, split(module, inputs[0]), strict=True):
            bags = ids.values().numel() + kernel.config.num_features() * toys.GLOBAL
            buffers += 8 * bags + 2 * 4 * toys.GLOBAL * sum(kernel.config.embedding_dims())

    for _, collection in sharded_collections(sharded.model):
        for lookup in collection._lookups:
            lookup.register_forward_hook(note)
            for kernel in lookup._emb_modules:
                weights += sum(part.nbytes for part in kernel.split_embedding_weights())
                for states in kernel.emb_module.get_optimizer_state():
                    state += sum(part.nbytes for part in states.values())
    of = toys.batch(0, rank, ranks)
    pooled = sharded.model.embeddings.tables(of.sparse).values()
    received = 2 * pooled.nbytes
    return estimate, (weights, state, buffers, received)


def state_of_rows(rank: int, ranks: int, sharding: str | None, name: str) -> list[tuple[int, int]]:
    """(estimated, held) bytes of optimizer state, then of a step's own buffers at most and really."""
    sharded = sharded_toy(sharding, name, ranks, engine="rows")
    engine, optimizer = ENGINES["rows"], TableOptimizer(name, 0.1)
    learners = RowTables(sharded.module).learners
    shards = [shard for table in sharded.plan.tables for shard in table.shards if shard.rank == rank]
    tensors = [
        tensor
        for one in learners
        for tensor in (one.stamps, one.counts, one.slots.first, one.slots.second, one.slots.sums)
    ]
    found = [
        (
            sum(shard.bytes.optimizer for shard in shards),
            sum(tensor.nbytes for tensor in tensors if tensor is not None),
        )
    ]
    collection = next(row_collections(sharded.module))
    arrived = collection.send(toys.batch(0, rank, ranks).sparse)
    for lookup in arrived.calls:
        for call in lookup:
            touched = call.touched
            one = call.reduce(ascending=True)
            scale = torch.zeros_like(one.squares)
            saved = call.learner.perturb(Pass(touched, one), scale, step=1) if optimizer.rule else None
            second = call.reduce(ascending=False) if optimizer.rule else one
            held = [touched.rows, touched.tables, touched.counts, touched.private, one.squares, one.gradient]
            held += [scale, saved, second.gradient] if saved is not None else []
            widths = [shape.stored for shape in call.learner.group.shapes]
            most = engine.buffer_bytes(optimizer, len(call.bags.ids), max(widths), "cpu")
            found.append((most, sum(tensor.nbytes for tensor in held)))
    return found


@pytest.mark.parametrize("name", ["sgd", "rowwise_adagrad", "adam", "nadam", "radam", "helen", "sam"])
@pytest.mark.parametrize("sharding", ["table_wise", "row_wise", "column_wise", "table_row_wise", None])
def test_estimates_are_what_the_rows_engine_holds(pool: Pool, sharding: str | None, name: str) -> None:
    for state, *buffers in pool.run(4, state_of_rows, sharding, name, local_ranks=2):
        assert state[0] == state[1]
        assert all(held <= most for most, held in buffers)


def split(lookup, ids):
    if not lookup._emb_modules:  # a rank may hold no table of one kind of sharding
        return []
    return ids.split(lookup._feature_splits) if len(lookup._feature_splits) > 1 else [ids]


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rowwise_adagrad"])
@pytest.mark.parametrize("sharding", ["table_wise", "row_wise", "column_wise", "table_row_wise", None])
def test_estimates_are_what_the_ranks_hold(pool: Pool, sharding: str | None, optimizer: str) -> None:
    for estimate, found in pool.run(4, measured, sharding, optimizer, local_ranks=2):
        assert found[:2] == estimate[:2]
        assert found[3] == estimate[3]
        # Ids per bag and their spread over row shards are averages: the toy's tags hold 0 to 3 a bag.
        assert found[2] == pytest.approx(estimate[2], rel=0.15)


def test_human_byte_counts() -> None:
    assert [human(n) for n in (5, 2048, 3 << 20, 5 << 29)] == ["5 B", "2.0 KiB", "3.0 MiB", "2.50 GiB"]
    assert torch.float32.itemsize == 4
