"""Rows per second and peak memory of `sparta prepare` on synthetic rows, as one line of JSON.

    python benchmarks/prepare.py --rows 1000000

The raw rows are made first (`sparta synth`: 13 numbers, 26 categories, one list column);
`prepare` then runs in a process of its own; `peak_bytes` is its largest resident memory, `start_bytes` what
it held before it began. Memory should follow the vocabulary, not the rows: compare several --rows.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path

from sparta.service.data.prepare import prepare
from sparta.service.data.spec import load_spec
from sparta.service.data.synth import synth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--raw", type=Path, help="raw rows of an earlier run, made there if absent")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        return measure(arguments.measure)
    with tempfile.TemporaryDirectory() as scratch:
        raw = arguments.raw or Path(scratch) / "raw"
        if not (raw / "prepare.yaml").is_file():
            with redirect_stdout(sys.stderr):
                synth(raw, rows=arguments.rows, seed=arguments.seed)
        command = [sys.executable, __file__, "--measure", str(raw)]
        print(subprocess.run(command, check=True, capture_output=True, text=True).stdout, end="")
    return None


def measure(raw: Path) -> None:
    """Prepare the rows under `raw` and print what it took."""
    spec = load_spec(raw / "prepare.yaml")
    before = _peak_bytes()
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "dataset"
        start = time.perf_counter()
        schema = prepare(spec, out, progress=False)
        seconds = time.perf_counter() - start
        values = sum(feature.rows for feature in schema.sparse)
    rows = sum(schema.splits.values())
    print(
        json.dumps(
            {
                "rows": rows,
                "table_rows": values,
                "seconds": round(seconds, 2),
                "rows_per_second": round(rows / seconds),
                "peak_bytes": _peak_bytes(),
                "start_bytes": before,
            }
        )
    )


def _peak_bytes() -> int:
    """Largest resident memory since this program began (getrusage would count its parent's, too)."""
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index("VmHWM:") + 1]) * 1024


if __name__ == "__main__":
    main()
