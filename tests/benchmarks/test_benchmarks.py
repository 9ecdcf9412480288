"""Every benchmark runs, in the small, and says what the README's tables and `make bench-verify` read."""

import json
import multiprocessing
import os
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import speed
from sparta.launcher.local import MEMORY_AND_THREADS

ROOT = Path(__file__).parents[2]
NO_QUESTION = {"measured", "shape", "turns", "readme", "speed", "verify"}
SMALL = ("--threads=1", "--rows=4000", "--rounds=1")
RUNS: dict[str, tuple[str, ...]] = {
    "loader": ("--rows=20000", "--repeats=1"),
    "prepare": ("--rows", "1000", "2000", "--pairs=1"),
    "kernels": ("--threads=1", "--rows=500", "--batch=64", "--repeats=1"),
    "steps": (*SMALL, "--batch=64"),
    "helen_step": (*SMALL, "--batch=64"),
    "growth": (
        *("--threads=1", "--rounds=1", "--rows", "4000", "8000", "--batch=64", "--batches", "64", "128"),
        *("--pairs=1", "--steps=50"),
    ),
    "memory": ("--threads=1", "--rows=4000", "--runs=1", "--steps=2"),
    "checkpoint": (*SMALL, "--large=8000", "--steps=2"),
    "telemetry": (*SMALL, "--steps=2"),
    "loops": ("--only=helen", "--pairs=1", "--batch=64", "--steps=50"),
}
"""The benchmarks of `make bench`, so small that their figures mean nothing; gpu_kernels has a test of its own."""


def run(name: str, out: str) -> None:
    """Be a benchmark; in a process that has torch already, which takes seconds to import."""
    os.environ.update(MEMORY_AND_THREADS, OMP_NUM_THREADS="1")
    os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT), 1)
    script = str(ROOT / "benchmarks" / f"{name}.py")
    sys.argv = [script, *RUNS[name]]
    runpy.run_path(script, run_name="__main__")
    sys.stdout.flush()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each benchmark printed, by its name."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.preload"])
    told = {}
    for name in RUNS:
        out = tmp_path_factory.mktemp("bench") / f"{name}.json"
        process = context.Process(target=run, args=(name, str(out)))
        process.start()
        process.join()
        assert process.exitcode == 0, name
        told[name] = json.loads(out.read_text())
    return told


def test_make_bench_runs_every_benchmark_that_needs_no_gpu() -> None:
    (listed,) = re.findall(r"^BENCHMARKS = (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    there = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - NO_QUESTION
    assert set(listed.split()) == set(RUNS) == there - {"gpu_kernels"}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_it_says_ratios_with_their_spread_figures_and_circumstances(
    reports: dict[str, Any], name: str
) -> None:
    report = reports[name]
    assert report["ratios"]
    for one in report["ratios"].values():
        assert one.keys() == {"median", "spread", "pairs"}
        assert 0 <= one["spread"][0] <= one["median"] <= one["spread"][1]
        assert one["pairs"] >= 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", report["date"])
    assert report["machine"].keys() == {"cpu", "cores", "load_average"}
    assert {"python", "torch", "torchrec"} <= report["versions"].keys()
    assert speed.tables_of({name: report})


@pytest.mark.slow
def test_what_the_tables_say_more_of_is_what_the_benchmarks_call_so(reports: dict[str, Any]) -> None:
    def without_sizes(name: str) -> str:
        return re.sub(r"[\d,]*\d", "N", name)

    names = [name for report in reports.values() for name in report["ratios"]]
    assert len(names) == len(set(names))
    titles = runpy.run_path(str(ROOT / "benchmarks" / "loops.py"), run_name="loops")["QUESTIONS"]
    known = {without_sizes(name) for name in (*names, *(question.title for question in titles))}
    assert {without_sizes(name) for name in speed.SAID} <= known
    assert all(keys[0] in reports[name] for name, keys, *_ in speed.FIGURES)
