"""The tables of speed, from the committed results alone: benchmarks/results/<benchmark>-<date>.json.

    python -m benchmarks.speed [build/bench]

Prints them, of the newest result of every benchmark, with all its ratios; the README shows those that have a target.
Here stand the targets, and words for ratios whose names do not say enough.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measured import RESULTS, newest, script
from sparta.service.compare.table import markdown

Results = Mapping[str, Mapping[str, Any]]
"""A benchmark's report, by the name of its file without the date."""

ORDER = (
    "loops",
    "small",
    "steps",
    "helen_step",
    "growth",
    "memory",
    "kernels",
    "checkpoint",
    "telemetry",
    "loader",
)
"""Of the benchmarks in the tables; others follow."""


@dataclass(frozen=True)
class Said:
    """What is said of a ratio beside its name."""

    target: str = ""
    words: str = ""
    """In place of the name."""


FUXICTR = {
    "anime, batch 2048, to FuxiCTR": "≥ 269k",
    "criteo_tb80k, batch 512, to FuxiCTR": "≥ 46k",
    "census_income, batch 1024, to FuxiCTR": "≥ 57k",
    "speed_shape, batch 4096, to FuxiCTR": "≥ 29k",
}
"""Small jobs, and what examples/s FuxiCTR reached on a quiet machine of this kind, before there was a record."""
LOOP = "examples/s of `sparta train` to"
MEMORY = "memory of training, 10M rows x 16, beyond the process without tables, to weights and Adam's moments"
AUTHORS, OURS = "the authors' way, fp32, dense part too", "Helen, bf16, on tables"
SAID = {
    "plain TorchRec loop, fp32": Said("≥ 1.15", f"{LOOP} a plain TorchRec loop's, fp32; a save in 500 steps"),
    "plain TorchRec loop, bf16": Said("≥ 1.15", f"{LOOP} a plain TorchRec loop's, bf16; a save in 500 steps"),
    "Helen in bf16 to the authors' way, 1M rows": Said("≥ 4", f"{LOOP} {AUTHORS}; {OURS}, 1M rows"),
    "Helen in bf16 to the authors' way, 10M rows": Said("≥ 40", f"{LOOP} {AUTHORS}; {OURS}, 10M rows"),
    **{name: Said("> 1", f"{LOOP} FuxiCTR's: {name.removesuffix(', to FuxiCTR')}") for name in FUXICTR},
    "a step with adagrad to adam's, deepfm": Said(words="a step with FBGEMM's adagrad to adam's, deepfm"),
    "fbgemm rowwise_adagrad to adam": Said(words="rowwise_adagrad of engine fbgemm to adam"),
    "rows rowwise_adagrad to adam": Said(words="rowwise_adagrad of engine rows to adam"),
    "rows rowwise_adagrad to fbgemm's": Said(words="rowwise_adagrad of engine rows to that of engine fbgemm"),
    "helen to adam": Said("≤ 1.7", "a step with helen to adam's, the model alone"),
    "helen, bf16, ascend_every 2 to adam": Said(
        "≤ 1.35", "the same, first pass in bf16 and every other step"
    ),
    "helen, a step at 10,000,000 table rows to 100,000 table rows": Said(
        "≤ 1.1", "helen, a step at 10,000,000 table rows to 100,000, the same ids"
    ),
    **{
        f"{name} of training {model} to its tables and moments": Said("≤ 1.2", f"{MEMORY}: {model}{when}")
        for model in ("dnn", "deepfm")
        for name, when in (("memory", ""), ("memory with a checkpoint", ", once a checkpoint was saved"))
    },
    **{
        f"finding rows and both passes with {base} to FBGEMM's backward": Said(
            "≤ 2", f"finding rows and both passes with {base} to FBGEMM's faster backward, of its Adagrads"
        )
        for base in ("adam", "rowwise_adagrad")
    },
    "stall of a save to a synchronous one": Said("≤ .25"),
    "time with a save every 200 steps": Said("≤ 1.05", "time with a save every 200 steps to that without"),
    "resuming to reading with checksums": Said("≤ 2"),
    "time when watched to that when not": Said("< 1.01"),
}
ON_A_GPU = {
    "helen to fbgemm adam": Said("≤ 1.8"),
    "helen, bf16, ascend_every 2 to fbgemm adam": Said("≤ 1.4"),
}
"""In place of SAID."""
PAIRED = ("loops", "small")
"""Benchmarks whose examples/s are of ours and of theirs."""
FIGURES = (
    ("loader", ("rows_per_second",), "rows/s that one core loads", "≥ 2M"),
    ("prepare", ("by_rows", "1000000", "rows_per_second"), "rows/s of prepare, 1M rows", ""),
    ("prepare", ("by_rows", "10000000", "rows_per_second"), "rows/s of prepare, 10M rows", ""),
    ("prepare", ("by_rows", "1000000", "peak_bytes"), "peak memory of prepare, 1M rows, bytes", ""),
    ("prepare", ("by_rows", "10000000", "peak_bytes"), "peak memory of prepare, 10M rows, bytes", ""),
)
"""Absolute figures that stand in a table: of which benchmark, where, in which words, target."""


def tables(results: Path = RESULTS) -> dict[str, str]:
    """What stands between the markers `speed`, of the README, and `measured`; nothing where nothing has ratios."""
    found = newest(results)
    return tables_of(found) if found else {}


def tables_of(results: Results) -> dict[str, str]:
    """Likewise, of these; and under what circumstances."""
    names = sorted(results, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
    ordered = {name: results[name] for name in names}
    short = (ratios(ordered, readme=True), figures(ordered, readme=True))
    whole = (ratios(ordered), examples(ordered), figures(ordered))
    return {
        name: "\n\n".join(filter(None, (*parts, circumstances(ordered))))
        for name, parts in (("speed", short), ("measured", whole))
    }


def ratios(results: Results, *, readme: bool = False) -> str:
    """Every ratio with its spread; in the README those that have a target."""
    rows = []
    for name, report in results.items():
        known = SAID if report.get("device", "cpu") == "cpu" else ON_A_GPU
        for of, one in report["ratios"].items():
            said = known.get(of, Said())
            if readme and not said.target:
                continue
            spread, repeat = (" - ".join(map(number, one.get(key, ()))) for key in ("spread", "repeat"))
            void, median = of in report.get("void", ()), one["median"]
            ratio = f"{number(median)}{', void' * void}"
            target = said.target if void else aim(said.target, median)
            where = link(name, readme=readme)
            rows.append((said.words or of, ratio, spread, str(one["pairs"]), repeat, target, where))
    return markdown(("question", "ratio", "10-90%", "pairs", "a repeat", "target", "script"), rows)


def examples(results: Results) -> str:
    """Examples a second by model and table optimizer."""
    if "steps" not in results:
        return ""
    report = results["steps"]
    rows = [
        (model, optimizer, f"{rate:,}", f"{report['milliseconds'][model][optimizer]:.1f}")
        for model, rates in report["examples_per_second"].items()
        for optimizer, rate in rates.items()
    ]
    return markdown(("model", "tables", "examples/s", "ms a step"), rows)


def figures(results: Results, *, readme: bool = False) -> str:
    """Other absolute figures; likewise."""
    rows = []
    for name, keys, words, target in FIGURES:
        value: Any = results.get(name)
        for key in keys:
            value = value.get(key) if value else None
        if value:
            rows.append((words, f"{round(value):,}", aim(target, value), link(name, readme=readme)))
    for name in PAIRED:
        for of, one in results.get(name, {}).get("examples_per_second", {}).items():
            pair = f"{one['ours']:,}; {one['theirs']:,}"
            whose, where = f"examples/s, ours and theirs: {of}", link(name, readme=readme)
            rows.append((whose, pair, aim(FUXICTR.get(of, ""), one["ours"]), where))
    rows = [row for row in rows if row[2] or not readme]
    return markdown(("figure", "value", "target", "script"), rows) if rows else ""


def circumstances(results: Results) -> str:
    """When, on what and with which versions: one line if it is the same for all, else one for each kind."""
    groups: dict[str, list[str]] = {}
    for name, report in results.items():
        groups.setdefault("; ".join(_circumstances(report)), []).append(name)
    if len(groups) == 1:
        return f"{next(iter(groups))}."
    return "\n".join(f"- {', '.join(names)}: {text}." for text, names in groups.items())


def aim(target: str, value: float) -> str:
    """A target, with a word if it was missed; nothing where there is none."""
    if not target:
        return ""
    how, _, text = target.partition(" ")
    goal = float(text.rstrip("kM")) * {"k": 1e3, "M": 1e6}.get(text[-1], 1.0)
    met = {"≤": value <= goal, "<": value < goal, "≥": value >= goal, ">": value > goal}[how]
    return target if met else f"{target}, missed"


def number(value: float) -> str:
    """A ratio with as many digits as one can tell apart."""
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def link(name: str, *, readme: bool = False) -> str:
    """The script that made a result, as seen from this folder or from the README."""
    where = name.partition("-")[2]
    path = f"benchmarks/{script(name)}" if readme else script(name)
    return f"[`{script(name)}`]({path}){f' ({where})' if where else ''}"


def _circumstances(report: Mapping[str, Any]) -> Iterator[str]:
    yield report["date"]
    device = report.get("device", "cpu")
    machine = report["machine"]
    yield f"{machine['cpu']}, {machine['cores']} cores" + (f", {device}" if device != "cpu" else "")
    yield ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    if theirs := report.get("their_versions"):
        yield "beside " + ", ".join(f"{name} {number}" for name, number in theirs.items())


if __name__ == "__main__":
    print(tables(*map(Path, sys.argv[1:])).get("measured", "nothing measured yet"))
