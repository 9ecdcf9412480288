"""`make bench-verify`: three of the committed ratios, drawn by the commit, measured again.

Every benchmark's JSON has `ratios`: by name the median of interleaved pairs and their spread. The benchmarks of the
three that are drawn are run as they were; a median outside of its committed spread is a failure.

    python benchmarks/verify.py [--commit HASH] [--count 3] [--list]
"""

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from measured import APART, RESULTS, newest, script

HERE = Path(__file__).parent
PLAIN, LEAST = "plain TorchRec loop, fp32", 40_000
"""Below so many examples a second this is no machine of the kind that the comparison was made on, or it is busy."""

Entry = tuple[str, str]
"""A benchmark's file and one of its ratios."""


def committed(folder: Path = RESULTS) -> dict[Entry, dict[str, Any]]:
    """The newest ratios of every benchmark that runs everywhere, but for those of other kinds of machines."""
    return {
        (script(name), of): one
        for name, report in newest(folder).items()
        for of, one in report["ratios"].items()
        if report.get("device", "cpu") == "cpu" and name not in APART
    }


def drawn(entries: Sequence[Entry], commit: str, count: int) -> list[Entry]:
    """So many of the entries; always the same for a commit."""
    return random.Random(commit).sample(sorted(entries), min(count, len(entries)))


def outside(now: Mapping[str, Any], then: Mapping[str, Any]) -> bool:
    """Whether a median lies outside of the committed spread."""
    low, high = then["spread"]
    return not low <= now["median"] <= high


def measure(benchmark: str) -> dict[str, Any]:
    """What a benchmark prints."""
    done = subprocess.run(
        [sys.executable, str(HERE / benchmark)], check=True, stdout=subprocess.PIPE, text=True
    )
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def void(report: Mapping[str, Any]) -> bool:
    """Whether the comparison with the plain loop says nothing here."""
    plain = report.get("examples_per_second", {}).get(PLAIN)
    return bool(plain and plain["theirs"] < LEAST)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--commit", help="what draws; default: HEAD")
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--list", action="store_true", help="show what is drawn, and stop")
    options = parser.parse_args()
    head = ["git", "-C", str(HERE), "rev-parse", "HEAD"]
    commit = options.commit or subprocess.run(head, check=True, capture_output=True, text=True).stdout.strip()
    known = committed()
    chosen, reports, failed = drawn(list(known), commit, options.count), {}, False
    for benchmark, name in chosen:
        if options.list:
            print(
                f"{benchmark}: {name}: {known[benchmark, name]['median']} {known[benchmark, name]['spread']}"
            )
            continue
        if benchmark not in reports:
            reports[benchmark] = measure(benchmark)
        if name not in reports[benchmark]["ratios"]:
            print(
                f"{benchmark}: {name}: is not measured any more; commit what the benchmark prints now",
                flush=True,
            )
            failed = True
            continue
        then, now = known[benchmark, name], reports[benchmark]["ratios"][name]
        verdict = "outside" if outside(now, then) else "within"
        if void(reports[benchmark]):
            verdict = f"void, the plain loop is below {LEAST:,} examples/s, and"
        failed = failed or verdict == "outside"
        print(f"{benchmark}: {name}: {now['median']}, {verdict} {then['spread']}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
