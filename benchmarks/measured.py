"""What every benchmark says alike: a ratio with its spread, and on what machine it was measured."""

import os
import platform
import statistics
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu", "numba", "pyarrow")


def ratio(of: Sequence[float], to: Sequence[float]) -> dict[str, Any]:
    """The ratios of neighbouring measurements: median, spread (10th and 90th percentile), number."""
    found = [a / b for a, b in zip(of, to, strict=True)]
    tenths = statistics.quantiles(found, n=10, method="inclusive") if len(found) > 1 else found * 9
    return {
        "median": round(statistics.median(found), 4),
        "spread": [round(tenths[0], 4), round(tenths[-1], 4)],
        "pairs": len(found),
    }


def circumstances() -> dict[str, Any]:
    """Date, machine and versions."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": {
            "cpu": _cpu(),
            "cores": len(os.sched_getaffinity(0)),
            "load_average": round(os.getloadavg()[0], 1),
        },
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
