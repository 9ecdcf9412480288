"""Rows per second and peak memory of `sparta prepare` on synthetic rows.

    python benchmarks/prepare.py [--rows 1000000 10000000] [--pairs 7]

The raw rows are made first (`sparta synth`: 13 numbers, 26 categories, one list column). `prepare` runs in a process of
its own, with few rows and with many in turns; `peak_bytes` is its largest resident memory, `start_bytes` what it held
before it began. Memory should follow the vocabulary, not the rows. Prints one JSON object: ratios of many rows to few,
medians of each, machine.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from measured import circumstances, ratio, resident

from sparta.service.data.prepare import prepare
from sparta.service.data.spec import load_spec
from sparta.service.data.synth import synth

Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs=2, default=(1_000_000, 10_000_000))
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    found: dict[int, list[Figures]] = {rows: [] for rows in options.rows}
    with tempfile.TemporaryDirectory() as scratch:
        for rows in options.rows:
            with redirect_stdout(sys.stderr):
                synth(Path(scratch) / str(rows), rows=rows, seed=options.seed)
        for turn in range(options.pairs):
            for rows in options.rows[:: 1 if turn % 2 else -1]:
                found[rows].append(apart(Path(scratch) / str(rows)))
    few, many = options.rows

    def grown(kind: str) -> dict[str, Any]:
        return ratio([one[kind] for one in found[many]], [one[kind] for one in found[few]])

    of_many = f"of prepare with {many:,} rows to {few:,}"
    report = {
        "ratios": {f"rows/s {of_many}": grown("rows_per_second"), f"memory {of_many}": grown("peak_bytes")},
        "by_rows": {str(rows): medians(runs) for rows, runs in found.items()},
        **circumstances(),
    }
    print(json.dumps(report, indent=1))


def apart(raw: Path) -> Figures:
    """What it takes to prepare the rows under `raw`, in a process of its own."""
    command = [sys.executable, __file__, "--measure", str(raw)]
    told: Figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return told


def measure(raw: Path) -> Figures:
    """What it takes to prepare the rows under `raw`."""
    spec = load_spec(raw / "prepare.yaml")
    before = resident()
    with tempfile.TemporaryDirectory() as scratch:
        began = time.perf_counter()
        schema = prepare(spec, Path(scratch) / "dataset", progress=False)
        seconds = time.perf_counter() - began
    return {
        "table_rows": sum(feature.rows for feature in schema.sparse),
        "seconds": round(seconds, 2),
        "rows_per_second": round(sum(schema.splits.values()) / seconds),
        "peak_bytes": resident(),
        "start_bytes": before,
    }


def medians(runs: list[Figures]) -> Figures:
    """The median of each figure."""
    return {kind: statistics.median(run[kind] for run in runs) for kind in runs[0]}


if __name__ == "__main__":
    main()
