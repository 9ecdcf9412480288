"""`make bench-verify`: what is drawn, and when a figure no longer holds."""

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import measured
import verify

RATIO = {"median": 1.2, "spread": [1.1, 1.3], "pairs": 5}


def test_every_committed_ratio_has_a_benchmark_and_lies_in_its_own_spread() -> None:
    assert verify.committed()
    for (script, _), one in verify.committed().items():
        assert (verify.HERE / script).is_file()
        assert not verify.outside(one, one)


def test_the_newest_result_of_a_benchmark_counts_but_none_of_a_gpu(tmp_path: Path) -> None:
    for date, names in (("2026-01-02", ["b"]), ("2025-12-30", ["a", "b"])):
        (tmp_path / f"loops-{date}.json").write_text(json.dumps({"ratios": dict.fromkeys(names, RATIO)}))
    (tmp_path / "loader-2026-01-02.json").write_text("{}")
    on_a_gpu = {"ratios": {"c": RATIO}, "device": "cuda"}
    (tmp_path / "loops-gpu-2026-01-03.json").write_text(json.dumps(on_a_gpu))
    assert verify.committed(tmp_path) == {("loops.py", "b"): RATIO}


@given(st.sets(st.tuples(st.text(), st.text()), min_size=1), st.text(), st.integers(1, 9))
def test_a_commit_draws_the_same_ones_in_any_order(
    entries: set[tuple[str, str]], commit: str, count: int
) -> None:
    chosen = verify.drawn(list(entries), commit, count)
    assert chosen == verify.drawn(sorted(entries, reverse=True), commit, count)
    assert len(set(chosen)) == len(chosen) == min(count, len(entries))
    assert set(chosen) <= entries


@pytest.mark.parametrize("median, is_outside", [(1.09, True), (1.1, False), (1.3, False), (1.31, True)])
def test_a_median_outside_the_spread_fails(median: float, is_outside: bool) -> None:
    assert verify.outside({"median": median}, RATIO) == is_outside


@pytest.mark.parametrize("median, theirs, code", [(1.2, 45_000, 0), (0.9, 45_000, 1), (0.9, 39_000, 0)])
def test_the_plain_loop_must_be_as_fast_as_on_such_a_machine(
    monkeypatch: pytest.MonkeyPatch, median: float, theirs: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    report = {
        "ratios": {verify.PLAIN: {"median": median}},
        "examples_per_second": {verify.PLAIN: {"theirs": theirs}},
    }
    monkeypatch.setattr(verify, "committed", lambda: {("loops.py", verify.PLAIN): RATIO})
    monkeypatch.setattr(verify, "measure", lambda script: report)
    monkeypatch.setattr(sys, "argv", ["verify", "--commit", "c"])
    assert verify.main() == code
    assert ("void" in capsys.readouterr().out) == (theirs < verify.LEAST)


def test_a_ratio_is_the_median_of_neighbours() -> None:
    found = measured.ratio([2.0, 6.0, 4.0], [1.0, 2.0, 4.0])
    assert (found["median"], found["pairs"]) == (2.0, 3)
    assert 1.0 <= found["spread"][0] < 2.0 < found["spread"][1] <= 3.0
    assert measured.ratio([3.0], [2.0]) == {"median": 1.5, "spread": [1.5, 1.5], "pairs": 1}
