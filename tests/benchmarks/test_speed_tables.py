"""The README's tables of speed say what the committed JSON says, and under what circumstances."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import speed
from benchmarks.measured import newest, script


def report(date: str = "2026-02-01", median: float = 1.2, **more: Any) -> dict[str, Any]:
    """A benchmark's."""
    return {
        "ratios": {"a to b": {"median": median, "spread": [1.1, 13.25], "pairs": 5, "repeat": [1, 2]}},
        "date": date,
        "machine": {"cpu": "C", "cores": 2, "load_average": 0.3},
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        **more,
    }


def test_a_ratio_stands_with_its_spread_target_and_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "SAID", {"a to b": speed.Said("≤ 2", "how much a takes")})
    told = speed.ratios({"kernels": report()})
    row = "| how much a takes | 1.200 | 1.100 - 13.2 | 5 | 1.000 - 2.000 | ≤ 2 | [`kernels.py`](kernels.py) |"
    assert told.splitlines()[2] == row
    assert "| 1.200, void |" in speed.ratios({"loops": report(void=["a to b"])})
    monkeypatch.setattr(speed, "SAID", {})
    assert "| a to b | 1.200 |" in speed.ratios({"kernels": report()})


def test_the_readme_has_what_aims_at_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loader-2026-01-02.json").write_text(json.dumps(report(rows_per_second=2e6)))
    told = speed.tables(tmp_path)
    assert "| a to b |" in told["measured"]
    assert "| a to b |" not in told["speed"]
    assert "| ≥ 2M | [`loader.py`](benchmarks/loader.py) |" in told["speed"]
    monkeypatch.setattr(speed, "SAID", {"a to b": speed.Said("≤ 2")})
    assert "| ≤ 2 | [`loader.py`](benchmarks/loader.py) |" in speed.tables(tmp_path)["speed"]
    prepare = {"by_rows": {"1000000": {"rows_per_second": 9, "peak_bytes": 9}}}
    assert speed.figures({"prepare": report(**prepare)})
    assert not speed.figures({"prepare": report(**prepare)}, readme=True)


@pytest.mark.parametrize(
    ("target", "met", "missed"),
    [
        ("≤ 1.7", 1.7, 1.71),
        ("< 1.01", 1.0, 1.01),
        ("≥ .25", 0.25, 0.2),
        ("> 1", 1.1, 1.0),
        ("≥ 2M", 2e6, 1.9e6),
    ],
)
def test_a_target_that_was_missed_says_so(target: str, met: float, missed: float) -> None:
    assert speed.aim(target, met) == target
    assert speed.aim(target, missed) == f"{target}, missed"
    assert speed.aim("", met) == ""


def test_what_is_void_neither_meets_its_target_nor_misses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "SAID", {"a to b": speed.Said("≥ 4")})
    assert "| ≥ 4 |" in speed.ratios({"loops": report(void=["a to b"])})
    assert "| ≥ 4, missed |" in speed.ratios({"loops": report()})


def test_what_is_said_is_said_of_what_is_measured() -> None:
    """To the letter: a target whose ratio has another name would be shown nowhere."""
    measured = {of for one in newest().values() for of in one["ratios"]}
    assert set(speed.SAID) <= measured
    assert set(speed.FUXICTR) <= measured


def test_the_newest_result_with_ratios_counts_wherever_it_was_made(tmp_path: Path) -> None:
    assert speed.tables(tmp_path) == {}
    for name, one in {
        "kernels-2026-01-02": report(median=1.3),
        "kernels-2025-12-30": report(median=9.9),
        "helen_step-gpu-2026-01-03": report(median=1.5, device="cuda"),
        "loader-2026-01-01": {"rows_per_second": 1},
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(one))
    found = newest(tmp_path)
    assert {name: one["ratios"]["a to b"]["median"] for name, one in found.items()} == {
        "helen_step-gpu": 1.5,
        "kernels": 1.3,
    }
    assert script("helen_step-gpu") == "helen_step.py"
    assert "[`helen_step.py`](helen_step.py) (gpu) |" in speed.tables(tmp_path)["measured"]


def test_one_line_of_circumstances_unless_they_differ() -> None:
    line = "2026-02-01; C, 2 cores; python 3.11.7, torch 2.13.0."
    assert speed.circumstances({"kernels": report(), "loops": report()}) == line
    busier = report(machine={"cpu": "C", "cores": 2, "load_average": 9.0})
    assert speed.circumstances({"kernels": busier, "loops": report()}) == line
    told = speed.circumstances(
        {"loops": report(), "growth": report(date="2026-02-02"), "kernels": report(), "x": report(device="G")}
    )
    assert told.splitlines() == [
        f"- loops, kernels: {line}",
        "- growth: 2026-02-02; C, 2 cores; python 3.11.7, torch 2.13.0.",
        "- x: 2026-02-01; C, 2 cores, G; python 3.11.7, torch 2.13.0.",
    ]


def test_examples_a_second_and_other_figures_where_they_were_measured() -> None:
    assert speed.examples({"kernels": report()}) == speed.figures({"kernels": report()}) == ""
    rates = {"deepfm": {"adam": 53445, "helen": 31352}}
    milliseconds = {"deepfm": {"adam": 76.64, "helen": 130.6}}
    told = speed.examples({"steps": report(examples_per_second=rates, milliseconds=milliseconds)})
    assert told.splitlines()[2:] == [
        "| deepfm | adam | 53,445 | 76.6 |",
        "| deepfm | helen | 31,352 | 130.6 |",
    ]
    loops = report(examples_per_second={"a loop": {"ours": 98000, "theirs": 45000}})
    lines = speed.figures({"loader": report(rows_per_second=2_600_000.4), "loops": loops}).splitlines()[2:]
    assert lines == [
        "| rows/s that one core loads | 2,600,000 | ≥ 2M | [`loader.py`](loader.py) |",
        "| examples/s, ours and theirs: a loop | 98,000; 45,000 |  | [`loops.py`](loops.py) |",
    ]
