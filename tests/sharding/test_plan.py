"""Plans: what may be asked, what is refused, and that nobody but the arguments decides."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from sparta.models.embedding import Table, padded
from sparta.models.errors import ConfigError, PlanError
from sparta.sharding.engines import SHARDING_TYPES, TableOptimizer
from sparta.sharding.plan import format_plan, load_plan, make_plan
from sparta.sharding.record import Plan, windows
from tests.pool import Pool

GIB = 1 << 30


def tables(*dims: int, rows: int = 1000) -> list[Table]:
    """T0, T1, ... with their twins."""
    return [
        table
        for number, dim in enumerate(dims)
        for table in (
            Table(f"T{number}", f"T{number}", rows, dim),
            Table(f"T{number}.wide", f"T{number}", rows, 1),
        )
    ]


def plan(of: list[Table], constraints=None, *, ranks=2, optimizer="adagrad", memory_bytes=None, device="cpu"):
    return make_plan(
        of,
        ranks=ranks,
        local_ranks=min(ranks, 2) if device == "cpu" else ranks,
        device=device,
        batch_size=64,
        constraints=constraints or {},
        optimizers={table.name: TableOptimizer(optimizer, 0.1, engine="fbgemm") for table in of},
        memory_bytes=memory_bytes,
    )


def load(path: Path, of: list[Table], *, ranks=2, local_ranks=2, device="cpu", memory_bytes=None) -> Plan:
    return load_plan(
        path,
        of,
        ranks=ranks,
        local_ranks=local_ranks,
        device=device,
        batch_size=64,
        optimizers={table.name: TableOptimizer("adagrad", 0.1, engine="fbgemm") for table in of},
        memory_bytes=memory_bytes,
    )


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(st.integers(1, 70), st.integers(1, 40)), min_size=1, max_size=4),
    st.sampled_from([(1, 1), (2, 2), (4, 2)]),
    st.sampled_from([*SHARDING_TYPES, None]),
)
def test_shards_tile_their_table(shapes, ranks, sharding) -> None:
    of = [Table(f"T{n}", f"T{n}", rows, dim) for n, (rows, dim) in enumerate(shapes)]
    asked = {
        table.name: [sharding]
        for table in of
        if sharding and not (sharding == "column_wise" and table.dim < 5)
    }
    found = make_plan(
        of,
        ranks=ranks[0],
        local_ranks=ranks[1],
        device="cpu",
        batch_size=8,
        constraints=asked,
        optimizers={table.name: TableOptimizer("sgd", 0.1) for table in of},
    )
    found.check(of, ranks=ranks[0])
    for table in of:
        mine = found.table(table.name)
        cells = sum((s.rows[1] - s.rows[0]) * (s.columns[1] - s.columns[0]) for s in mine.shards)
        copies = ranks[0] if mine.sharding == "data_parallel" else 1
        assert cells == copies * table.rows * table.dim
        assert sum(s.stored[0] * s.stored[1] for s in mine.shards) == copies * table.rows * padded(table.dim)
        assert table.name in asked or mine.sharding != "data_parallel"
        if table.name in asked:
            assert mine.sharding == sharding
            assert sharding != "column_wise" or len(mine.shards) >= 2
    assert Plan.model_validate_json(found.model_dump_json()) == found


def plan_json(rank: int, ranks: int) -> str:
    return plan(tables(16, 8, 10, 200), {"T1": ["row_wise", "table_wise"]}, ranks=4).model_dump_json()


def test_every_process_makes_the_same_plan(pool: Pool) -> None:
    # Each worker has its own hash seed, on which the order of TorchRec's choices depends.
    assert len(set(pool.run(4, plan_json))) == 1


def test_a_constraint_holds_for_the_twin_unless_it_is_named() -> None:
    found = plan(tables(8, 8, 8), {"T0": ["row_wise"], "T1": ["row_wise"], "T1.wide": ["table_wise"]})
    assert [found.table(name).sharding for name in ("T0", "T0.wide", "T1", "T1.wide")] == [
        "row_wise",
        "row_wise",
        "row_wise",
        "table_wise",
    ]


def test_column_wise_splits_narrow_tables_and_leaves_their_twins_whole() -> None:
    found = plan(tables(8, 10, 16), {name: ["column_wise"] for name in ("T0", "T1", "T2")}, ranks=4)
    assert [s.columns for s in found.table("T0").shards] == [(0, 4), (4, 8)]
    assert [s.columns for s in found.table("T1").shards] == [(0, 4), (4, 8), (8, 10)]
    assert [s.columns for s in found.table("T2").shards] == [(0, 4), (4, 8), (8, 12), (12, 16)]
    assert found.table("T0.wide").sharding == "table_wise"


@pytest.mark.parametrize("dim", [16, 128, 512])
def test_what_is_called_column_wise_is_cut(dim) -> None:
    of = [table for number in range(8) for table in tables(dim, rows=50 * 4**number)]
    of = [replace(table, name=f"{n}.{table.name}") for n, table in enumerate(of)]
    found = plan(of, ranks=8, device="cuda", memory_bytes=80 * GIB).tables
    cut = [len(table.shards) for table in found if table.sharding == "column_wise"]
    assert all(shards > 1 for shards in cut)
    assert bool(cut) == (dim == 512)


def test_rowwise_adagrad_is_not_split_by_columns_unless_asked() -> None:
    wide = tables(512, rows=200_000)
    memory = 300 * (1 << 20)
    automatic = plan(wide, optimizer="rowwise_adagrad", ranks=2, memory_bytes=memory)
    assert automatic.table("T0").sharding in ("row_wise", "table_row_wise")
    asked = plan(wide, {"T0": ["column_wise"]}, optimizer="rowwise_adagrad", ranks=2, memory_bytes=memory)
    assert asked.table("T0").sharding == "column_wise"


@pytest.mark.parametrize(
    ("constraints", "error", "words"),
    [
        ({"T00": ["row_wise"]}, ConfigError, "no table 'T00'; did you mean 'T0'?"),
        ({"T0": ["data_parallel"]}, ConfigError, "T0: engine fbgemm has no data_parallel"),
        ({"T0": ["grid_shard"]}, ConfigError, "T0: 'grid_shard' is not supported"),
        ({"T0": ["grid_shard"]}, ConfigError, "T0: 'grid_shard' is not supported; use table_wise"),
        ({"T0": []}, ConfigError, "T0: is empty"),
        ({"T1": ["column_wise"]}, PlanError, "T1 has too few columns (4) for column_wise"),
        ({"T0.wide": ["column_wise"]}, PlanError, "T0.wide has too few columns (1) for column_wise"),
    ],
)
def test_bad_constraints_are_refused_by_name(constraints, error, words: str) -> None:
    with pytest.raises(error) as raised:
        plan(tables(8, 4), constraints)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["row_wise", "table_row_wise"])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 9])
def test_no_rank_is_given_a_shard_without_rows(rows: int, kind: str) -> None:
    """FBGEMM's CPU backward reads past its memory for a table without rows."""
    of = [Table("few", "few", rows, 8), Table("T0", "T0", 1000, 8)]
    fits = all(
        start < stop for (start, stop), _ in windows(kind, of[0], ranks=4, local_ranks=2, column_width=None)
    )
    found = plan(of, {"few": [kind, "table_wise"]}, ranks=4)
    assert all(shard.rows[0] < shard.rows[1] for table in found.tables for shard in table.shards)
    if fits:
        plan(of, {"few": [kind]}, ranks=4)
    else:
        with pytest.raises(PlanError, match=f"few has {rows} rows, too few for {kind} on"):
            plan(of, {"few": [kind]}, ranks=4)


def test_eight_gpus_are_planned_for_without_one() -> None:
    of = tables(64, 64, 128, rows=2_000_000)
    found = plan(of, ranks=8, device="cuda", memory_bytes=80 * GIB)
    assert found.ranks == 8
    assert {table.kernel for table in found.tables} == {"fused"}
    assert sum(s.bytes.weights for t in found.tables for s in t.shards) == sum(
        table.rows * padded(table.dim) * 4 for table in of
    )


def test_what_does_not_fit_is_named() -> None:
    of = [*tables(8, 8), Table("huge", "huge", 10_000_000, 64)]
    with pytest.raises(PlanError, match=r"table huge does not fit: .* takes 2\.38 GiB on a rank"):
        plan(of, memory_bytes=1 * GIB)
    with pytest.raises(PlanError, match=r"table huge does not fit: its smallest placement, table_wise"):
        plan(of, {"huge": ["table_wise"]}, memory_bytes=3 * GIB)
    assert plan(of, memory_bytes=3 * GIB).table("huge").sharding != "table_wise"
    crowd = tables(*[64] * 6, rows=1_000_000)
    with pytest.raises(PlanError, match=r"table T\d does not fit beside the others"):
        plan(crowd, {f"T{n}": ["table_wise"] for n in range(6)}, memory_bytes=1 * GIB)


def test_no_rank_exceeds_the_memory_it_was_given() -> None:
    of = tables(64, 64, 32, rows=300_000)
    need = sum(plan(of, ranks=1).rank_bytes(rank) for rank in range(1))
    limit = int(need * 0.6)
    found = plan(of, ranks=2, memory_bytes=limit)
    assert max(found.rank_bytes(rank) for rank in range(2)) <= limit


def test_a_saved_plan_is_read_back_and_forced(tmp_path: Path) -> None:
    of = tables(8, 10)
    made = plan(of, {"T1": ["column_wise"]})
    made.save(tmp_path / "plan.json")
    assert load(tmp_path / "plan.json", of) == made
    moved = load(tmp_path / "plan.json", of, device="cuda", local_ranks=1)
    assert (moved.device, moved.local_ranks) == ("cuda", 1)
    assert moved.table("T1").shards == made.table("T1").shards


def edited(path: Path, edit) -> Path:
    raw = json.loads(path.read_text())
    edit(raw)
    path.write_text(json.dumps(raw))
    return path


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda p: p.update(ranks=4), "is for 4 ranks, the job has 2"),
        (lambda p: p.update(format=7), "format"),
        (lambda p: p.update(oops=1), "oops"),
        (lambda p: p["tables"].pop(0), "does not place table 'T0'"),
        (lambda p: p["tables"].append(p["tables"][0]), "'T0', twice"),
        (lambda p: p["tables"][0].update(name="other"), "'other', which the model does not have"),
        (lambda p: p["tables"][0].update(rows=7), "7 x 8, the model's is 1000 x 8"),
        (lambda p: p["tables"][0].update(sharding="grid_shard"), "sharding"),
        (lambda p: p["tables"][0]["shards"][0].update(rank=5), "on rank 5 of 2"),
        (lambda p: p["tables"][0]["shards"].reverse(), "T0 are not row_wise"),
        (lambda p: p["tables"][0]["shards"].pop(), "T0 are not row_wise"),
        (lambda p: p["tables"][2]["shards"][0].update(columns=[0, 6]), "T1 are not column_wise"),
        (lambda p: p["tables"][4]["shards"][0].update(rows=[0, 6]), "T2 are not table_wise"),
    ],
)
def test_a_plan_for_another_job_or_out_of_shape_is_refused(tmp_path: Path, edit, words: str) -> None:
    of = tables(8, 10, 8)
    path = tmp_path / "plan.json"
    plan(of, {"T0": ["row_wise"], "T1": ["column_wise"], "T2": ["table_wise"]}).save(path)
    with pytest.raises(PlanError) as raised:
        load(edited(path, edit), of)
    assert str(path) in str(raised.value)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_unreadable_plans_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="no such plan"):
        load(tmp_path / "none.json", tables(8))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(PlanError, match="not readable as JSON"):
        load(tmp_path / "broken.json", tables(8))
    made = plan(tables(8), {"T0": ["table_row_wise"]})
    made.save(tmp_path / "plan.json")
    with pytest.raises(PlanError, match="table_row_wise over nodes of 2 ranks, these have 1"):
        load(tmp_path / "plan.json", tables(8), local_ranks=1)
    with pytest.raises(PlanError, match=r"table T0.* does not fit"):
        load(tmp_path / "plan.json", tables(8), memory_bytes=10_000)


def test_the_printed_plan_has_every_shard_and_the_totals() -> None:
    found = plan(tables(8, 10), {"T0": ["row_wise"]})
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(format_plan(found))
    text = console.export_text()
    lines = [line.split() for line in text.splitlines()]
    for table in found.tables:
        for shard in table.shards:
            rows = f"{shard.rows[0]}:{shard.rows[1]}"
            assert any(str(shard.rank) in line and table.name in line and rows in line for line in lines)
    assert text.count("total") == 2
