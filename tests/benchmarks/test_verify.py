"""`make bench-verify`: what is drawn, and when a figure no longer holds."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import loops
import measured
import small
import speed
import verify

RATIO = {"median": 1.2, "spread": [1.0, 1.4], "pairs": 5, "repeat": [1.1, 1.3]}


def test_every_committed_ratio_has_a_benchmark_and_says_where_a_repeat_lies() -> None:
    assert verify.committed()
    for (script, _), one in verify.committed().items():
        assert (verify.HERE / script).is_file()
        assert one["repeat"][1] <= 1.5 * one["median"], "too noisy to be told from others: measure it again"


def test_the_newest_result_of_a_benchmark_counts_but_none_of_another_machine(tmp_path: Path) -> None:
    for date, names in (("2026-01-02", ["b"]), ("2025-12-30", ["a", "b"])):
        (tmp_path / f"loops-{date}.json").write_text(json.dumps({"ratios": dict.fromkeys(names, RATIO)}))
    (tmp_path / "loader-2026-01-02.json").write_text("{}")
    for where in ("gpu", "arm"):
        (tmp_path / f"loops-{where}-2026-01-03.json").write_text(
            json.dumps({"ratios": {"b": {}, "c": RATIO}})
        )
    void = {"ratios": {"d": RATIO, "e": RATIO}, "void": ["d"]}
    (tmp_path / "steps-2026-01-03.json").write_text(json.dumps(void))
    assert verify.committed(tmp_path) == {("loops.py", "b"): RATIO, ("steps.py", "e"): RATIO}


@given(st.sets(st.tuples(st.text(), st.text()), min_size=1), st.text(), st.integers(1, 9))
def test_a_commit_draws_the_same_ones_in_any_order(
    entries: set[tuple[str, str]], commit: str, count: int
) -> None:
    chosen = verify.drawn(list(entries), commit, count)
    assert chosen == verify.drawn(sorted(entries, reverse=True), commit, count)
    assert len(set(chosen)) == len(chosen) == min(count, len(entries))
    assert set(chosen) <= entries


@pytest.mark.parametrize("median, is_outside", [(1.09, True), (1.1, False), (1.3, False), (1.31, True)])
def test_a_median_outside_of_where_repeats_lie_fails(median: float, is_outside: bool) -> None:
    assert verify.outside({"median": median}, RATIO) == is_outside


MACHINE = {"cpu": "one", "cores": 2}


def verified(
    monkeypatch: pytest.MonkeyPatch, medians: dict[str, float], void: list[str], cores: int = 2
) -> int:
    """What `main` says of the committed ratios a and b when a run finds these."""
    report = {"ratios": {of: {"median": median} for of, median in medians.items()}, "void": void}
    monkeypatch.setattr(verify, "committed", lambda: {("loops.py", of): RATIO for of in "ab"})
    monkeypatch.setattr(verify, "newest", lambda: {"loops": {"machine": MACHINE}})
    monkeypatch.setattr(verify, "measure", lambda script: report | {"machine": MACHINE | {"cores": cores}})
    monkeypatch.setattr(sys, "argv", ["verify", "--commit", "c"])
    return verify.main()


@pytest.mark.parametrize(
    "a, void, code",
    [(1.2, [], 0), (0.9, [], 1), (0.9, ["a"], 0), (0.9, ["b"], 1), (1.2, ["b"], 0), (1.2, ["a", "b"], 1)],
)
def test_what_is_void_here_is_said_and_fails_only_if_nothing_else_can_be_told(
    monkeypatch: pytest.MonkeyPatch,
    a: float,
    void: list[str],
    code: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert verified(monkeypatch, {"a": a, "b": 1.2}, void) == code
    said = capsys.readouterr().out
    assert said.count("but void: the other side") == len(void)
    assert ("nothing could be told" in said) == (len(void) == 2)
    assert f"a: {a}, {'outside' if a < 1 else 'within'} [1.1, 1.3]" in said


def test_what_is_not_measured_any_more_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert verified(monkeypatch, {"a": 1.2}, []) == 1


def test_another_machine_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert verified(monkeypatch, {"a": 1.2, "b": 1.2}, [], cores=8) == 0
    assert "loops.py: measured on 2 cores, and here on 8 cores\n" in capsys.readouterr().out


def test_a_comparison_is_void_with_all_of_its_group_where_the_other_side_is_not_what_it_is_known_to_be() -> (
    None
):
    fp32, bf16, helen, large = (question.title for question in loops.QUESTIONS)
    rates = {fp32: 41_000, bf16: 90_000, helen: 14_000, large: 1_400}
    found = {title: {"theirs": rate} for title, rate in rates.items()}
    assert loops.void(found) == []
    assert loops.void({**found, fp32: {"theirs": 39_000}}) == [fp32, bf16]
    assert loops.void({**found, large: {"theirs": 900}}) == [large]
    assert loops.void({**found, large: {"theirs": 1_800}}) == [large]  # so fast their own code is not
    assert loops.void({helen: {"theirs": 9_000}}) == [helen]


def test_a_comparison_with_a_slow_fuxictr_is_void() -> None:
    found = {small.title(name): {"theirs": rate} for name, rate in small.KNOWN.items()}
    assert small.void(found) == []
    anime = small.title("anime")
    assert small.void({**found, anime: {"theirs": 0.7 * small.KNOWN["anime"]}}) == [anime]
    assert small.void({anime: found[anime]}) == []
    assert {small.title(name): f"≥ {rate // 1000}k" for name, rate in small.KNOWN.items()} == speed.FUXICTR


def test_a_ratio_is_the_median_of_neighbours() -> None:
    found = measured.ratio([2.0, 6.0, 4.0], [1.0, 2.0, 4.0])
    assert (found["median"], found["pairs"]) == (2.0, 3)
    assert 1.0 <= found["spread"][0] < 2.0 < found["spread"][1] <= 3.0
    assert measured.ratio([3.0], [2.0]) == {"median": 1.5, "spread": [1.5, 1.5], "pairs": 1}


@pytest.mark.parametrize("pairs", [3, 5, 15])
def test_one_run_in_a_hundred_lies_outside_of_another_s_bounds(
    pairs: int,
) -> None:
    rng, runs = np.random.default_rng(1), 400
    missed = 0
    for first, second in rng.lognormal(0.3, 0.1, (runs, 2, pairs)):
        then, now = (measured.ratio(list(one), [1.0] * pairs, drift=0.0) for one in (first, second))
        missed += verify.outside(now, then)
    assert missed <= 12  # 4 are expected; more than 12 in one of 2,000 trials


def test_what_takes_half_as_long_again_lies_outside() -> None:
    rng, runs, pairs = np.random.default_rng(1), 100, 15
    found = 0
    for first, second in rng.lognormal(0.3, 0.1, (runs, 2, pairs)):
        then, now = (measured.ratio(list(one), [1.0] * pairs) for one in (first, 1.5 * second))
        found += verify.outside(now, then)
    assert found >= 99


def test_bounds_are_no_closer_than_machines_drift() -> None:
    low, high = measured.ratio([2.0] * 5, [1.0] * 5)["repeat"]
    assert (low, high) == pytest.approx((2 / (1 + measured.DRIFT), 2 * (1 + measured.DRIFT)), rel=1e-4)
