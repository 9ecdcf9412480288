"""So many bad partitions are passed over, each named and counted once, on all ranks alike."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparta.models.errors import DataError
from sparta.service.world import world
from tests.pool import Pool
from tests.service.watched import Watched, nobody, put

FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def watched(data: Path, tmp_path: Path) -> Iterator[Watched]:
    with world("cpu") as here:
        yield Watched(here, data, tmp_path / "watched", tmp_path / "scratch")


def spoilt(folder: Path, kinds: Mapping[str, str]) -> list[str]:
    """A folder of partitions of one step each, some of them bad; the names of these."""
    for number, (name, kind) in enumerate(kinds.items()):
        put(folder / name, 16, number)
        if kind == "torn":
            (folder / name).write_bytes((folder / name).read_bytes()[:99])
        if kind == "broken":
            table = pq.read_table(folder / name)
            pq.write_table(
                table.set_column(table.column_names.index("click"), "click", [[7] * 16]), folder / name
            )
    return [name for name, kind in kinds.items() if kind != "good"]


@FEW
@given(
    st.lists(st.sampled_from(["good", "torn", "broken"]), min_size=1, max_size=5),
    st.integers(0, 4),
)
def test_so_many_bad_partitions_are_passed_over_named_and_not_tried_again(
    watched: Watched,
    tmp_path_factory: pytest.TempPathFactory,
    kinds: list[str],
    limit: int,
) -> None:
    watched.folder, watched.scratch = (tmp_path_factory.mktemp(name) for name in ("spoilt", "scratch"))
    bad = spoilt(watched.folder, {f"{number}.parquet": kind for number, kind in enumerate(kinds)})
    good = len(kinds) - len(bad)
    notes: list[str] = []
    feed = watched.feed(bad_partitions=limit, idle_seconds=0.02)

    def steps() -> int:
        return sum(1 for stretch in feed.stretches(0, nobody, notes.append) for _ in stretch)

    if len(bad) > limit:
        way_out = f"parquet: .*; or pass over more than {limit} bad files with tolerate.bad_partitions$"
        with pytest.raises(DataError, match=way_out):
            steps()
        assert len(notes) == limit
        return
    assert (steps(), len(notes)) == (good, len(bad))
    for name in bad:
        assert sum(f"{name}: " in note for note in notes) == 1
    state = json.loads(json.dumps(feed.state_dict(good)))
    assert sorted(state["passed_over"]) == bad
    again = watched.feed(bad_partitions=limit, idle_seconds=0.02)
    again.load_state_dict(state)
    assert list(again.stretches(good, nobody, notes.append)) == []
    assert len(notes) == len(bad)


def test_one_that_is_bad_when_a_run_goes_on_in_its_middle_is_passed_over(
    watched: Watched,
) -> None:
    put(watched.folder / "a.parquet", 40, 0)
    put(watched.folder / "b.parquet", 16, 1)
    feed = watched.feed(max_steps=2)
    watched.told(feed)
    shutil.rmtree(watched.scratch, ignore_errors=True)
    spoilt(watched.folder, {"a.parquet": "torn"})
    again = watched.feed(bad_partitions=1)
    again.load_state_dict(feed.state_dict(2))
    assert [(step, epoch) for step, epoch, _ in watched.told(again, 2)] == [(3, 1)]


def passed_over(rank: int, ranks: int, data: Path, folder: Path, scratch: Path) -> tuple[list[str], int, int]:
    """What this rank is told, how often it is idle, and the steps."""
    with world("cpu") as here:
        feed = Watched(here, data, folder, scratch).feed(bad_partitions=2, idle_seconds=0.3)
        notes: list[str] = []
        idle: list[int] = []
        stretches = feed.stretches(0, lambda: idle.append(1), notes.append)
        steps = sum(1 for stretch in stretches for _ in stretch)
        return notes, len(idle), steps


def test_all_ranks_pass_over_the_same_and_are_idle_equally_often(
    pool: Pool, data: Path, tmp_path: Path
) -> None:
    kinds = {"a.parquet": "broken", "b.parquet": "torn", "c.parquet": "good"}
    spoilt(tmp_path / "watched", kinds)
    found = pool.run(2, passed_over, data, tmp_path / "watched", tmp_path / "scratch")
    assert found[0] == found[1]
    notes, idle, steps = found[0]
    assert (len(notes), steps) == (2, 1)
    assert idle > 0
