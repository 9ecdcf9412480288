"""What every benchmark says alike: a ratio with its spread, on what machine it was measured; and the committed results.

A benchmark prints one JSON object: `ratios` by name, its absolute figures, `circumstances()`. What is committed of it
is `results/<benchmark>-<date>.json`, or `<benchmark>-<where>-<date>.json` where the machine is of another kind.
"""

import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparta.service.compare.intervals import student
from sparta.service.machine import processor, versions

RESULTS = Path(__file__).with_name("results")
PACKAGES = ("torch", "torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu", "triton", "numba", "numpy", "pyarrow")
DATED = "-????-??-??.json"
DRIFT = 0.1
"""By how much a ratio changes from one process, hour or machine of a kind to another, whatever its pairs say.

Medians of six runs of kernels.py in an hour lay 9% apart, of 30 pairs each. It does not cover every state of a shared
machine: a day before one was 25% lower.
"""
APART = ("small",)
"""Benchmarks with ratios that `make bench` does not run, for they need what a fresh clone has not."""


def ratio(of: Sequence[float], to: Sequence[float], drift: float = DRIFT) -> dict[str, Any]:
    """The ratios of measurements of one round: median, spread (10th and 90th percentile), number.

    From three pairs on also `repeat`: where the median of another run like this lies 99 times in 100 while the machine
    stays as it is, and `drift` beside that.
    """
    found = [a / b for a, b in zip(of, to, strict=True)]
    tenths = statistics.quantiles(found, n=10, method="inclusive") if len(found) > 1 else found * 9
    median = statistics.median(found)
    said = {
        "median": round(median, 4),
        "spread": [round(tenths[0], 4), round(tenths[-1], 4)],
        "pairs": len(found),
    }
    if len(found) > 2:
        # Two medians of n normal logarithms differ by 2 * pi / 2n of their variance.
        error = statistics.stdev(map(math.log, found)) * math.sqrt(math.pi / len(found))
        within = math.hypot(student(0.99, len(found) - 1) * error, math.log1p(drift))
        said["repeat"] = [round(median * math.exp(sign * within), 4) for sign in (-1, 1)]
    return said


def circumstances() -> dict[str, Any]:
    """Date, machine and versions."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": {"cpu": processor(), "cores": cores(), "load_average": round(os.getloadavg()[0], 1)},
        "versions": {"python": platform.python_version(), **versions(PACKAGES)},
    }


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def resident(kind: str = "VmHWM") -> int:
    """Bytes of resident memory: the most so far, or with VmRSS what it is now (getrusage would count a parent's)."""
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index(f"{kind}:") + 1]) * 1024


def as_launched() -> None:
    """Start this program again with what the launcher sets; torch and OpenMP read it when they load."""
    from sparta.launcher.local import MEMORY_AND_THREADS

    if not MEMORY_AND_THREADS.keys() <= os.environ.keys():
        os.execve(sys.executable, sys.orig_argv, {**MEMORY_AND_THREADS, **os.environ})


def as_a_stranger() -> dict[str, str]:
    """The environment without what the launcher sets, which nobody has who does not know it."""
    from sparta.launcher.local import MEMORY_AND_THREADS

    return {name: value for name, value in os.environ.items() if name not in MEMORY_AND_THREADS}


def newest(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """The newest result of every benchmark that has ratios, by its file's name without the date."""
    dated = {path.name[: -len(DATED)]: path for path in sorted(folder.glob(f"*{DATED}"))}
    found = {name: json.loads(path.read_text()) for name, path in dated.items()}
    return {name: report for name, report in found.items() if "ratios" in report}


def script(name: str) -> str:
    """The benchmark that made a result of this name."""
    return f"{name.partition('-')[0]}.py"
