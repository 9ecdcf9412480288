"""Laws of the loader on small datasets, and of its thread."""

import gc
import itertools
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparta.models.batch import Batch
from sparta.models.errors import ConfigError
from sparta.models.schema import Schema
from sparta.service.data.loader import Loader
from tests.service.data.batches import Row, global_batches
from tests.service.data.datasets import MIXED, columns, random_table, schemas, write_dataset

FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def file_rows(schema: Schema, table: pa.Table) -> list[Row]:
    """A table's rows as `unpack` gives them."""
    sparse = {feature.name for feature in schema.sparse}
    names = columns(schema)
    return [
        tuple(str(row[name]) if name in sparse else row[name] for name in names) for row in table.to_pylist()
    ]


def same(a: Batch, b: Batch) -> bool:
    tensors = [(x.sparse.values(), x.sparse.lengths(), x.dense, x.labels, x.slots.weights) for x in (a, b)]
    equal = all(torch.equal(x, y) for x, y in zip(*tensors, strict=True))
    return equal and (a.slots.step, a.slots.seed, a.slots.first) == (
        b.slots.step,
        b.slots.seed,
        b.slots.first,
    )


@FEW
@given(
    schemas(),
    st.integers(0, 70),
    st.integers(1, 6),
    st.integers(1, 5),
    st.integers(1, 8),
    st.integers(1, 25),
    st.integers(1, 3),
    st.booleans(),
)
def test_any_ranks_give_the_same_batches_and_every_row_once(
    tmp_path_factory: pytest.TempPathFactory,
    schema: Schema,
    rows: int,
    streams: int,
    share: int,
    ranks: int,
    row_group: int,
    files: int,
    shuffle: bool,
) -> None:
    folder = tmp_path_factory.mktemp("dataset")
    table = random_table(schema, rows)
    schema = write_dataset(folder, schema, {"train": table}, row_group=row_group, files=files)
    sizes = {"batch_size": streams * share, "streams": streams, "shuffle": shuffle}
    one = global_batches(folder, schema, **sizes)
    assert global_batches(folder, schema, ranks=ranks, **sizes) == one
    assert sorted(map(repr, itertools.chain(*one))) == sorted(map(repr, file_rows(schema, table)))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Schema, pa.Table]:
    folder = tmp_path_factory.mktemp("mixed")
    table = random_table(MIXED, 500)
    return folder, write_dataset(folder, MIXED, {"train": table}, row_group=60, files=2), table


def test_one_stream_unshuffled_is_file_order(mixed: tuple[Path, Schema, pa.Table]) -> None:
    folder, schema, table = mixed
    rows = list(itertools.chain(*global_batches(folder, schema, batch_size=64, streams=1, shuffle=False)))
    assert rows == file_rows(schema, table)


def test_start_continues_exactly_where_a_run_would_be(mixed: tuple[Path, Schema, pa.Table]) -> None:
    folder, schema, _ = mixed
    for rank in range(3):
        loader = Loader(folder, schema, "train", batch_size=64, streams=16, rank=rank, ranks=3, seed=7)
        whole = list(loader.epoch(2))
        for start in range(loader.steps + 1):
            rest = list(loader.epoch(2, start))
            assert len(rest) == loader.steps - start
            assert all(same(a, b) for a, b in zip(whole[start:], rest, strict=True))


def test_epochs_and_seeds_differ_and_are_repeatable(mixed: tuple[Path, Schema, pa.Table]) -> None:
    folder, schema, _ = mixed
    sizes = {"batch_size": 64, "streams": 16}
    orders = [
        global_batches(folder, schema, seed=seed, epoch=epoch, **sizes) for seed in (0, 1) for epoch in (0, 1)
    ]
    assert len({repr(order) for order in orders}) == 4
    assert global_batches(folder, schema, seed=1, epoch=1, **sizes) == orders[-1]


def test_steps_are_counted_over_epochs_when_training_and_zero_in_evaluation(
    mixed: tuple[Path, Schema, pa.Table],
) -> None:
    folder, schema, _ = mixed
    loader = Loader(folder, schema, "train", batch_size=64, streams=4, seed=5)
    steps = [batch.slots.step for epoch in (0, 1) for batch in loader.epoch(epoch)]
    assert steps == list(range(1, 2 * loader.steps + 1))
    assert {batch.slots.seed for batch in loader.epoch(0)} == {5}
    evaluation = Loader(folder, schema, "train", batch_size=64, streams=1, shuffle=False)
    assert {batch.slots.step for batch in evaluation.epoch(0)} == {0}


def test_tensors_have_the_types_and_shapes_that_the_layers_expect(
    mixed: tuple[Path, Schema, pa.Table],
) -> None:
    folder, schema, _ = mixed
    for batch in Loader(folder, schema, "train", batch_size=64, ranks=3).epoch(0):
        assert batch.dense.shape == (22, 2)
        assert batch.labels.shape == (22, 1)
        assert batch.sparse.values().dtype == torch.int64
        assert batch.sparse.lengths().shape == (4 * 22,)
        assert batch.sparse.offsets().tolist() == [0, *batch.sparse.lengths().cumsum(0).tolist()]
        assert sum(batch.sparse.length_per_key()) == len(batch.sparse.values())
        assert all(x.is_contiguous() for x in (batch.dense, batch.labels, batch.sparse.values()))


def test_a_row_group_is_decoded_once_an_epoch(
    mixed: tuple[Path, Schema, pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, schema, _ = mixed
    loader = Loader(folder, schema, "train", batch_size=64)
    read, seen = loader._groups.read, []
    monkeypatch.setattr(loader._groups, "read", lambda group, *args: seen.append(group) or read(group, *args))
    list(loader.epoch(0))
    assert sorted(seen) == list(range(10))


def test_arguments_out_of_range_are_refused(mixed: tuple[Path, Schema, pa.Table]) -> None:
    folder, schema, _ = mixed
    loader = Loader(folder, schema, "train", batch_size=64)
    with pytest.raises(ConfigError, match=r"start 99 is outside the epoch's 8 batches"):
        loader.epoch(0, start=99)
    with pytest.raises(ConfigError, match="prefetch is 0"):
        Loader(folder, schema, "train", batch_size=64, prefetch=0)
    with pytest.raises(ConfigError, match=r"batch_size 50 .* streams 16"):
        Loader(folder, schema, "train", batch_size=50)


# The thread


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "sparta-loader"]


@pytest.mark.skipif(sys.platform != "linux", reason="a thread has no priority of its own")
def test_the_thread_gives_way_to_those_that_compute(mixed: tuple[Path, Schema, pa.Table]) -> None:
    folder, schema, _ = mixed
    batches: Any = Loader(folder, schema, "train", batch_size=16, prefetch=1).epoch(0)
    next(batches)
    (thread,) = loader_threads()
    assert thread.native_id is not None
    mine, its = (os.getpriority(os.PRIO_PROCESS, number) for number in (0, thread.native_id))
    assert its == min(19, mine + 10)
    batches.close()


def test_the_thread_ends_with_its_iterator(mixed: tuple[Path, Schema, pa.Table]) -> None:
    folder, schema, _ = mixed
    loader = Loader(folder, schema, "train", batch_size=16, prefetch=1)
    exhausted = loader.epoch(0)
    assert len(list(exhausted)) == loader.steps
    assert not loader_threads()
    closed: Any = loader.epoch(0)
    next(closed)
    assert len(loader_threads()) == 1
    closed.close()
    assert not loader_threads()
    dropped = loader.epoch(0)
    next(dropped)
    del dropped
    gc.collect()
    assert not loader_threads()


def test_batches_are_made_ahead_but_no_more_than_asked_for(
    mixed: tuple[Path, Schema, pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, schema, _ = mixed
    loader = Loader(folder, schema, "train", batch_size=16, prefetch=3)
    made: list[int] = []
    assemble = loader._assemble
    monkeypatch.setattr(loader, "_assemble", lambda step, parts: made.append(step) or assemble(step, parts))
    batches: Any = loader.epoch(0)
    next(batches)
    deadline = time.monotonic() + 5
    while len(made) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(made) == 5  # one taken, three ready, one waiting for its place
    batches.close()


def test_a_process_ends_with_an_iterator_half_way(mixed: tuple[Path, Schema, pa.Table]) -> None:
    """Neither hung by the thread nor crashed by one killed inside Arrow."""
    folder, _, _ = mixed
    script = f"""
    from pathlib import Path
    from sparta.models.schema import load_schema
    from sparta.service.data.loader import Loader
    folder = Path({str(folder)!r})
    batches = Loader(folder, load_schema(folder), "train", batch_size=16).epoch(0)
    next(batches)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
