"""`make bench-verify`: three of the committed ratios, drawn by the commit, measured again.

Every benchmark's JSON has `ratios`: by name the median of interleaved pairs, their spread, and between what bounds a
`repeat` is expected to find it. The benchmarks of the three that are drawn are run as they were; a median outside of
these bounds is a failure, and so is it if nothing could be told: where the other side of a comparison is not as fast
as it is known to be on this kind of machine the comparison is void. What was void when it was committed, and what
needs more than a clone, is not drawn.

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


def elsewhere(benchmark: str, now: Mapping[str, Any]) -> list[str]:
    """What of the processor and its cores is another than where the committed result was measured."""
    then = newest()[benchmark.removesuffix(".py")]
    return [
        f"measured on {then['machine'][what]}{unit}, and here on {now['machine'][what]}{unit}"
        for what, unit in (("cpu", ""), ("cores", " cores"))
        if then["machine"][what] != now["machine"][what]
    ]


def measure(benchmark: str) -> dict[str, Any]:
    """What a benchmark prints."""
    done = subprocess.run(
        [sys.executable, str(HERE / benchmark)], check=True, stdout=subprocess.PIPE, text=True
    )
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def judged(name: str, then: Mapping[str, Any], report: Mapping[str, Any]) -> tuple[bool | None, str]:
    """Whether a ratio holds, None where that cannot be told; and what to say of it."""
    if name not in report["ratios"]:
        return False, "is not measured any more; commit what the benchmark prints now"
    now = report["ratios"][name]
    wrong = outside(now, then)
    said = f"{now['median']}, {'outside' if wrong else 'within'} {then['repeat']}"
    if name in report.get("void", ()):
        return None, f"{said}, but void: the other side is not as fast here as it is known to be"
    return not wrong, said


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--commit", help="what draws; default: HEAD")
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--list", action="store_true", help="show what is drawn, and stop")
    options = parser.parse_args()
    head = ["git", "-C", str(HERE), "rev-parse", "HEAD"]
    commit = options.commit or subprocess.run(head, check=True, capture_output=True, text=True).stdout.strip()
    known = committed()
    chosen = drawn(list(known), commit, options.count)
    if options.list:
        for benchmark, name in chosen:
            one = known[benchmark, name]
            print(f"{benchmark}: {name}: {one['median']} {one['repeat']}")
        return 0
    reports: dict[str, dict[str, Any]] = {}
    holds = []
    for benchmark, name in chosen:
        if benchmark not in reports:
            reports[benchmark] = measure(benchmark)
            for change in elsewhere(benchmark, reports[benchmark]):
                print(f"{benchmark}: {change}", flush=True)
        held, said = judged(name, known[benchmark, name], reports[benchmark])
        print(f"{benchmark}: {name}: {said}", flush=True)
        holds.append(held)
    if not any(holds) and False not in holds:
        print("nothing could be told; verify again on a quieter machine", flush=True)
    return int(False in holds or not any(holds))


if __name__ == "__main__":
    sys.exit(main())
