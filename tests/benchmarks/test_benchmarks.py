"""Every benchmark runs, in the small, and says what the README's tables and `make bench-verify` read."""

import json
import os
import re
import runpy
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from benchmarks import speed
from benchmarks.measured import APART
from sparta.launcher.local import MEMORY_AND_THREADS
from tests.pool import forking

ROOT = Path(__file__).parents[2]
NO_QUESTION = {"measured", "shape", "turns", "readme", "speed", "verify"}
NOT_EVERYWHERE = {"gpu_kernels", *APART, "fuxictr_deepfm"}
"""A GPU, or FuxiCTR; the first has a test of its own."""
SMALL = ("--threads=1", "--rows=4000", "--rounds=1")
RUNS: dict[str, tuple[str, ...]] = {
    "loader": ("--rows=20000", "--repeats=1"),
    "prepare": ("--rows", "1000", "2000", "--pairs=1"),
    "kernels": ("--threads=1", "--rows=500", "--batch=64", "--repeats=1"),
    "steps": (*SMALL, "--batch=64"),
    "helen_step": (*SMALL, "--batch=64"),
    "growth": (
        *("--threads=1", "--rounds=1", "--rows", "4000", "8000", "--batch=64", "--batches", "64", "128"),
        *("--tables=helen", "--pairs=1", "--steps=50"),
    ),
    "memory": ("--threads=1", "--rows=4000", "--runs=1", "--steps=2"),
    "checkpoint": (*SMALL, "--large=8000", "--steps=2"),
    "telemetry": (*SMALL, "--steps=2"),
    "loops": ("--only=helen", "--pairs=1", "--batch=64", "--steps=50"),
}
"""The benchmarks of `make bench`, so small that their figures mean nothing; gpu_kernels has a test of its own."""


Report = dict[str, Any]


def run(name: str, arguments: Sequence[str], out: str) -> None:
    """Be a benchmark, with two tables; in a process that has torch already, which takes seconds to import."""
    os.environ.update(MEMORY_AND_THREADS, OMP_NUM_THREADS="1")
    os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT), 1)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import shape

    shape.FIELDS, shape.NAMES = 2, shape.NAMES[:2]
    if name == "growth":  # loops trains as users do; here it would be two launches more
        shape.train = lambda *given, **options: 100.0 * options["ranks"]
    script = str(ROOT / "benchmarks" / f"{name}.py")
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
    sys.stdout.flush()


def printed(name: str, arguments: Sequence[str], out: Path) -> Any:
    """What it says."""
    process = forking().Process(target=run, args=(name, arguments, str(out)))
    process.start()
    process.join()
    assert process.exitcode == 0, name
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Report]:
    """What a benchmark printed, by its name."""

    @cache
    def of(name: str) -> Report:
        found: Report = printed(name, RUNS[name], tmp_path_factory.mktemp("bench") / f"{name}.json")
        return found

    return of


def test_make_bench_runs_every_benchmark_that_needs_no_gpu() -> None:
    (listed,) = re.findall(r"^BENCHMARKS = (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    there = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - NO_QUESTION
    assert set(listed.split()) == set(RUNS) == there - NOT_EVERYWHERE


def test_a_small_job_is_timed_after_its_first_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    rate = runpy.run_path(str(ROOT / "benchmarks" / "small.py"))["after_first_epoch"]
    seen = ((0, 100, 1.0), (0, 300, 5.0), (1, 400, 50.0), (1, 600, 200.0))
    lines = [{"epoch": e, "examples": n, "examples_per_second": r} for e, n, r in seen]
    assert rate(lines) == pytest.approx(300 / 3)


@pytest.mark.parametrize("side", [("plain", "fp32"), ("plain", "bf16"), ("authors", "fp32")])
def test_what_whole_trainings_are_compared_with_trains(side: tuple[str, str], tmp_path: Path) -> None:
    rows, batch, steps = "4000", "64", "44"  # 40 warm up
    assert printed("loops", ("--child", *side, rows, batch, steps), tmp_path / "rate") > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_it_says_ratios_with_their_spread_figures_and_circumstances(
    report: Callable[[str], Report], name: str
) -> None:
    found = report(name)
    assert found["ratios"]
    for one in found["ratios"].values():
        assert one.keys() == {"median", "spread", "pairs"} | ({"repeat"} if one["pairs"] > 2 else set())
        assert 0 <= one["spread"][0] <= one["median"] <= one["spread"][1]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"])
    assert found["machine"].keys() == {"cpu", "cores", "load_average"}
    assert {"python", "torch", "torchrec"} <= found["versions"].keys()
    assert speed.tables_of({name: found})["measured"]


@pytest.mark.slow
def test_what_the_tables_say_more_of_is_what_the_benchmarks_call_so(report: Callable[[str], Report]) -> None:
    def without_sizes(name: str) -> str:
        return re.sub(r"[\d,]*\d", "N", name)

    names = [of for name in RUNS for of in report(name)["ratios"]]
    assert len(names) == len(set(names))
    loops, small = (runpy.run_path(str(ROOT / "benchmarks" / f"{name}.py")) for name in ("loops", "small"))
    names += [question.title for question in loops["QUESTIONS"]] + [*map(small["title"], small["BATCH"])]
    known = {without_sizes(name) for name in names}
    assert {without_sizes(name) for name in speed.SAID} <= known
    assert all(keys[0] in report(name) for name, keys, *_ in speed.FIGURES)
