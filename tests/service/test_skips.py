"""Bad rows are counted exactly, over all ranks and across restarts; the others train as if they had been padding."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparta.models.batch import Flaw
from sparta.models.errors import DataError
from sparta.models.schema import load_schema
from sparta.service import build
from sparta.service.run import RunDirectory
from sparta.service.scoring import evaluate
from sparta.service.skips import TOLD, Skips, once
from sparta.service.train import trained as loaded
from sparta.service.world import world
from tests.pool import Pool
from tests.service import toys
from tests.service.data.datasets import MIXED, flip, poisoned, random_table, write_dataset
from tests.service.refusal import sparta

flaws = st.builds(
    Flaw, st.sampled_from("ab"), st.integers(0, 9), st.sampled_from(["C1", "y"]), st.just(0), st.just("bad")
)


def nothing(_: str) -> None:
    """Tells nobody."""


@given(st.lists(st.dictionaries(flaws, st.integers(1, 5), max_size=4), max_size=6), st.integers(0, 5))
def test_counts_are_the_sums_and_go_through_a_state(batches: list[dict[Flaw, int]], cut: int) -> None:
    told: list[str] = []
    skips = Skips(10_000, told.append)
    expected: Counter[Flaw] = Counter()
    for number, batch in enumerate(batches):
        if number == cut:
            state = json.loads(json.dumps(skips.state_dict()))
            skips = Skips(10_000, told.append)
            skips.load_state_dict(state)
        skips.add(batch)
        expected.update(batch)
    skips.compare()
    summary = skips.summary()
    assert summary["rows"] == expected.total() == sum(summary["by_column"].values())
    for column in ("C1", "y"):
        rows = sum(n for flaw, n in expected.items() if flaw.column == column)
        assert summary["by_column"].get(column, 0) == rows
    assert {place["place"]: place["rows"] for place in summary["places"]}.items() <= {
        str(flaw): rows for flaw, rows in expected.items()
    }.items()
    assert len(summary["places"]) == min(TOLD, len(expected))
    assert sorted(told) == sorted(set(told)), "a place is told once"
    assert {line.removeprefix("skipped: ") for line in told} == {
        place["place"] for place in summary["places"]
    }


@given(st.integers(1, 9), st.lists(st.integers(1, 4), max_size=8))
def test_the_limit_is_passed_by_one_row_more(limit: int, rows: list[int]) -> None:
    skips = Skips(limit, nothing)
    for number, count in enumerate(rows):
        skips.add({Flaw("a", number, "C1", 0, "bad"): count})
        if sum(rows[: number + 1]) <= limit:
            skips.compare()
            continue
        with pytest.raises(
            DataError, match=rf"bad rows, more than tolerate.bad_rows {limit}; most "
        ) as error:
            skips.compare()
        assert "\n" not in str(error.value)
        assert max(rows[: number + 1]) == int(str(error.value).partition("most (")[2].partition(")")[0])
        return


def over(rank: int, ranks: int, limit: int) -> tuple[list[list[Any]], str, dict[str, Any]]:
    """What each rank knows after counting on its own, and what is said of the limit."""
    skips = Skips(limit, nothing)
    skips.add({Flaw("a", 0, "C1", 0, "bad"): 1 + rank, Flaw("a", rank, "y", 0, "bad"): 1})
    try:
        state = skips.state_dict()
    except DataError as error:
        return [], str(error), skips.summary()
    return state, "", skips.summary()


def test_ranks_add_up_and_agree_on_the_limit(pool: Pool) -> None:
    found = pool.run(4, over, 14)
    assert all(of_rank == found[0] for of_rank in found)
    state, error, summary = found[0]
    assert (error, summary["rows"], summary["by_column"]) == ("", 14, {"C1": 10, "y": 4})
    assert sum(rows for *_, rows in state) == 14
    for state, error, _ in pool.run(4, over, 13):
        assert state == []
        assert error.startswith("14 bad rows, more than tolerate.bad_rows 13; most (10) are a: row group 0, ")


ROWS, EPOCHS = 300, 2
BAD: dict[tuple[str, int], object] = {
    ("C1", 5): 1000,
    ("I2", 9): float("nan"),
    ("y", 100): None,
    ("M", 250): [1, -1],
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One dataset with bad rows, and one in which these weigh nothing."""
    folder = tmp_path_factory.mktemp("skips")
    table = random_table(MIXED, ROWS)
    nothing_there = {("w", row): 0.0 for _, row in BAD}
    write_dataset(folder / "bad", MIXED, {"train": poisoned(table, BAD)}, row_group=50)
    write_dataset(folder / "light", MIXED, {"train": poisoned(table, nothing_there)}, row_group=50)
    return {name: folder / name for name in ("bad", "light")}


def trained(
    folder: Path, data: Path, *more: object, bad_rows: int = 0, **tables: object
) -> tuple[int, str, Path]:
    """A run on the data: exit code, errors, run directory."""
    job = toys.job_file(
        folder,
        data,
        data={"batch_size": 32},
        model={"args": {"hidden": [8]}},
        optim={"tables": {"name": "sgd", "lr": 0.1, **tables}},
        train={"epochs": EPOCHS},
        tolerate={"bad_rows": bad_rows},
        checkpoint={"every": 4},
    )
    code, _, err = sparta("train", job, "--run-dir", folder / "run", *more)
    return code, err, folder / "run"


def result(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "result.json").read_text())
    return found


def test_the_other_rows_train_as_if_the_bad_ones_were_padding(
    places: dict[str, Path], tmp_path: Path
) -> None:
    """With plain SGD a sample of weight 0 does nothing either."""
    for name in places:
        (tmp_path / name).mkdir()
    code, _, run = trained(tmp_path / "bad", places["bad"], bad_rows=EPOCHS * len(BAD))
    other_code, _, other = trained(tmp_path / "light", places["light"])
    assert (code, other_code) == (0, 0)
    lines, expected = toys.history(run), toys.history(other)
    assert len(lines) == len(expected) == EPOCHS * -(-ROWS // 32)
    for line, wanted in zip(lines, expected, strict=True):
        assert line["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
        assert line["examples"] == wanted["examples"]
    assert result(run)["examples"] == EPOCHS * (ROWS - len(BAD))
    assert "skipped" not in result(other)


SPLIT = "valid"


def evaluated(rank: int, ranks: int, run: Path, data: Path, limit: int) -> tuple[Any, list[str], str]:
    """Metrics of a split of the data by the run's model, twice; what is told, and what is said of the limit."""
    with world("cpu") as here:
        job = RunDirectory(run).read_job()
        _, sharded = loaded(RunDirectory(run), job, here)
        schema = load_schema(data)
        told: list[str] = []
        note = once(told.append)
        scores = []
        for _ in range(2):
            loader = build.scoring_loader(data, schema, SPLIT, 32, here, skip_bad_rows=limit > 0)
            try:
                scores.append(evaluate(sharded, loader, here, schema, skips=Skips(limit, note)))
            except DataError as error:
                return scores, told, str(error)
        return scores, told, ""


def test_evaluations_leave_bad_rows_out_name_each_place_once_and_count_anew(
    pool: Pool, places: dict[str, Path], tmp_path: Path
) -> None:
    _, _, run = trained(tmp_path, places["light"])
    for name, folder in places.items():
        write_dataset(
            tmp_path / name,
            MIXED,
            {SPLIT: pq.read_table(folder / "train" / "part-00000.parquet")},
            row_group=50,
        )
    (expected, _), told, error = pool.run(1, evaluated, run, tmp_path / "light", 0)[0]
    assert (told, error) == ([], "")
    for ranks in (1, 2):
        found = pool.run(ranks, evaluated, run, tmp_path / "bad", len(BAD))
        assert all(of_rank == found[0] for of_rank in found)
        scores, told, error = found[0]
        assert (scores[0], error) == (scores[1], "")
        assert len(told) == len(BAD)
        for label, metrics in expected.items():
            assert scores[0][label] == pytest.approx(metrics, rel=1e-5)
    scores, _, error = pool.run(1, evaluated, run, tmp_path / "bad", len(BAD) - 1)[0]
    assert scores == []
    assert error.startswith(f"{len(BAD)} bad rows, more than tolerate.bad_rows {len(BAD) - 1}; ")
    assert " row group 0, column 'C1', row 5: " in pool.run(1, evaluated, run, tmp_path / "bad", 0)[0][2]


def test_each_bad_row_is_counted_once_an_epoch_and_named(places: dict[str, Path], tmp_path: Path) -> None:
    code, err, run = trained(tmp_path, places["bad"], bad_rows=EPOCHS * len(BAD))
    assert code == 0
    skipped = result(run)["skipped"]
    assert skipped["rows"] == EPOCHS * len(BAD)
    assert skipped["by_column"] == {"C1": EPOCHS, "I2": EPOCHS, "M": EPOCHS, "y": EPOCHS}
    told = [line for line in err.splitlines() if "skipped: " in line]
    assert len(told) == len(BAD)
    assert any("row group 2, column 'y', row 0: null" in line for line in told)


def test_a_damaged_row_group_is_counted_as_its_rows(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_dataset(data, MIXED, {"train": random_table(MIXED, ROWS)}, row_group=50)
    flip(data / "train" / "part-00000.parquet", 1, 2)
    code, _, run = trained(tmp_path, data, "--set", "train.epochs=1", bad_rows=50)
    assert code == 0
    assert (result(run)["skipped"]["rows"], result(run)["examples"]) == (50, ROWS - 50)


def test_one_row_over_the_limit_ends_the_run_in_one_line(places: dict[str, Path], tmp_path: Path) -> None:
    code, err, run = trained(tmp_path, places["bad"], bad_rows=EPOCHS * len(BAD) - 1)
    assert code == 3
    last = err.splitlines()[-1]
    assert last.startswith(
        f"error: {EPOCHS * len(BAD)} bad rows, more than tolerate.bad_rows 7; most (2) are "
    )
    assert not (run / "result.json").exists()


def test_what_was_counted_before_a_stop_is_counted_once(places: dict[str, Path], tmp_path: Path) -> None:
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    limit = EPOCHS * len(BAD)
    _, _, whole = trained(tmp_path / "whole", places["bad"], bad_rows=limit)
    for steps in (3, 12, 13, None):
        code, err, run = trained(
            tmp_path / "parts",
            places["bad"],
            "--resume",
            *(() if steps is None else ("--set", f"train.max_steps={steps}")),
            bad_rows=limit,
        )
        assert code == 0, err
    assert result(run)["skipped"] == result(whole)["skipped"]
    assert [line["loss"] for line in toys.history(run)] == [line["loss"] for line in toys.history(whole)]
