"""How does a step grow with the rows of the tables and with the batch, and what do two ranks bring?

The speed shape (benchmarks/shape.py) with Adam and with Helen on its tables. Rows and batch: steps in this process
that take turns; tables of all sizes are given the ids of the smallest, so that only their size differs. Ranks: whole
runs of `sparta train` with the same global batch, one rank and two in turns; the launcher shares the cores out, so on
two cores one rank has two threads and each of two ranks has one. Prints one JSON object: ratios to the smallest,
examples/s, machine.

    python benchmarks/growth.py [--rounds 15] [--pairs 9] [--only rows|batch|ranks]
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import shape as speed
from measured import as_launched, circumstances, cores, ratio
from shape import MILLION, Shape
from turns import alone, batches, built, measure

TABLES = ("adam", "helen")
ROWS = (MILLION // 10, MILLION, 10 * MILLION)
BATCHES = (1024, 4096, 16384)
RANKS = (1, 2)

Answer = tuple[dict[str, Any], dict[str, int]]
"""Ratios by name, and examples/s by size."""


def by_rows(name: str, options: argparse.Namespace) -> Answer:
    """Time of a step, to that with the smallest tables."""
    sizes = {rows: f"{rows:,} table rows" for rows in options.rows}
    shapes = {str(rows): Shape(rows=rows, batch=options.batch) for rows in sizes}
    with alone(options.threads):
        given = batches(shapes[str(options.rows[0])], 16)
        steps = {size: (built({"name": name}, one)[1], given) for size, one in shapes.items()}
        taken = measure(steps, options.rounds)
    milliseconds = {rows: taken[str(rows)] for rows in sizes}
    rates = {rows: [options.batch * 1e3 / ms for ms in of] for rows, of in milliseconds.items()}
    return to_first(f"{name}, a step at", sizes, milliseconds), medians(rates)


def by_batch(name: str, options: argparse.Namespace) -> Answer:
    """Examples/s, to those with the smallest batch."""
    sizes = {batch: f"batch {batch:,}" for batch in options.batches}
    shapes = {str(batch): Shape(batch=batch) for batch in sizes}
    with alone(options.threads):
        steps = {size: (built({"name": name}, one)[1], batches(one, 16)) for size, one in shapes.items()}
        taken = measure(steps, options.rounds)
    rates = {batch: [batch * 1e3 / ms for ms in taken[str(batch)]] for batch in sizes}
    return to_first(f"{name}, examples/s at", sizes, rates), medians(rates)


def by_ranks(name: str, options: argparse.Namespace) -> Answer:
    """Examples/s of a whole training, to that on one rank."""
    rates: dict[int, list[float]] = {ranks: [] for ranks in RANKS}
    shape = Shape(batch=options.batch)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        speed.write(data, shape, options.steps)
        for turn in range(options.pairs):
            for ranks in RANKS[:: 1 if turn % 2 else -1]:
                rate = speed.train(data, shape, {"name": name}, steps=options.steps, ranks=ranks)
                rates[ranks].append(rate)
    sizes = {ranks: f"{ranks} rank{'s' * (ranks > 1)}" for ranks in RANKS}
    return to_first(f"{name}, examples/s on", sizes, rates), medians(rates)


def to_first(
    what: str, sizes: Mapping[int, str], values: Mapping[int, Sequence[float]]
) -> dict[str, dict[str, Any]]:
    """The ratio of every size to the first."""
    first, *others = sizes
    return {f"{what} {sizes[size]} to {sizes[first]}": ratio(values[size], values[first]) for size in others}


def medians(rates: Mapping[int, Sequence[float]]) -> dict[str, int]:
    """Examples/s by size."""
    return {str(size): round(statistics.median(of)) for size, of in rates.items()}


QUESTIONS: dict[str, Callable[[str, argparse.Namespace], Answer]] = {
    "rows": by_rows,
    "batch": by_batch,
    "ranks": by_ranks,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--pairs", type=int, default=9, help="of whole trainings")
    parser.add_argument("--steps", type=int, default=120, help="of a whole training")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--batch", type=int, default=Shape().batch, help="where rows or ranks grow")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES)
    parser.add_argument("--only", choices=tuple(QUESTIONS))
    parser.add_argument("--threads", type=int, default=cores())
    options = parser.parse_args()
    ratios: dict[str, Any] = {}
    rates: dict[str, dict[str, dict[str, int]]] = {}
    for question, ask in QUESTIONS.items():
        for name in options.tables if options.only in (None, question) else ():
            found, rates.setdefault(question, {})[name] = ask(name, options)
            ratios |= found
    report = {
        "ratios": ratios,
        "examples_per_second": rates,
        "batch": options.batch,
        "steps": options.steps,
        "threads": options.threads,
        **circumstances(),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    as_launched()
    main()
