"""`make bench-verify`: three of the committed ratios, drawn by the commit, measured again.

Every benchmark's JSON has `ratios`: by name the median of interleaved pairs, their spread, and between what bounds a
`repeat` is expected to find it. The benchmarks of the three that are drawn are run as they were; a median outside of
these bounds is a failure. Where the other side of a comparison is slower than it is known to be on this kind of
machine the comparison is void.

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

Entry = tuple[str, str]
"""A benchmark's file and one of its ratios."""


def committed(folder: Path = RESULTS) -> dict[Entry, dict[str, Any]]:
    """The newest ratios of every benchmark that runs everywhere, without void ones and those of other machines."""
    return {
        (script(name), of): one
        for name, report in newest(folder).items()
        if "-" not in name and name not in APART
        for of, one in report["ratios"].items()
        if of not in report.get("void", ())
    }


def drawn(entries: Sequence[Entry], commit: str, count: int) -> list[Entry]:
    """So many of the entries; always the same for a commit."""
    return random.Random(commit).sample(sorted(entries), min(count, len(entries)))


def outside(now: Mapping[str, Any], then: Mapping[str, Any]) -> bool:
    """Whether a median lies outside of where a repeat of the committed one lies."""
    low, high = then["repeat"]
    return not low <= now["median"] <= high


def measure(benchmark: str) -> dict[str, Any]:
    """What a benchmark prints."""
    done = subprocess.run(
        [sys.executable, str(HERE / benchmark)], check=True, stdout=subprocess.PIPE, text=True
    )
    report: dict[str, Any] = json.loads(done.stdout)
    return report


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
                f"{benchmark}: {name}: {known[benchmark, name]['median']} {known[benchmark, name]['repeat']}"
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
        if name in reports[benchmark].get("void", ()):
            verdict = "void, for the other side is too slow here, and"
        failed = failed or verdict == "outside"
        print(f"{benchmark}: {name}: {now['median']}, {verdict} {then['repeat']}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
