"""What does a step of each model cost, and with each table optimizer?

The speed shape (benchmarks/shape.py), one process: every model of the zoo with row-wise Adagrad on its tables, and
DeepFM with every table optimizer. All take turns on the same batches; prints one JSON object: ratios to DeepFM and to
Adam within the run, median milliseconds, examples/s, machine. It builds 15 models, 4 GB in all.

    python benchmarks/steps.py [--rounds 20] [--rows 1000000]

Adagrad with an accumulator an element is FBGEMM's, the others are of engine rows.
"""

import argparse
import json
import statistics
import sys
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from measured import as_launched, circumstances, cores, ratio
from shape import MILLION, Shape
from turns import alone, batches, built, measure

from sparta.models.zoo import ZOO

MODEL, OPTIMIZER, PLAIN = "deepfm", "rowwise_adagrad", "adam"
OURS = ("sgd", "rowwise_adagrad", "adam", "nadam", "radam", "sam", "asam", "helen")
TABLES: dict[str, dict[str, object]] = {
    **{name: {"name": name} for name in OURS},
    "adagrad": {"name": "adagrad", "engine": "fbgemm"},
}
PAIRS = sorted({*((model, OPTIMIZER) for model in ZOO), *((MODEL, name) for name in TABLES)})
"""(model, table optimizer) of each contestant."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--rows", type=int, default=MILLION)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=cores())
    options = parser.parse_args()
    shape = Shape(MODEL, options.rows, batch=options.batch)
    with alone(options.threads):
        given = batches(shape, 16)
        contestants = {
            f"{model} {name}": (built(TABLES[name], replace(shape, model=model))[1], given)
            for model, name in PAIRS
        }
        taken = measure(contestants, options.rounds)

    def of(model: str, name: str) -> list[float]:
        return taken[f"{model} {name}"]

    milliseconds: dict[str, dict[str, float]] = {}
    for model, name in PAIRS:
        milliseconds.setdefault(model, {})[name] = statistics.median(of(model, name))
    report = {
        "ratios": {
            **{
                f"a step of {model} to {MODEL}'s, {OPTIMIZER}": ratio(
                    of(model, OPTIMIZER), of(MODEL, OPTIMIZER)
                )
                for model in ZOO
                if model != MODEL
            },
            **{
                f"a step with {name} to {PLAIN}'s, {MODEL}": ratio(of(MODEL, name), of(MODEL, PLAIN))
                for name in TABLES
                if name != PLAIN
            },
        },
        "milliseconds": {m: {n: round(ms, 1) for n, ms in one.items()} for m, one in milliseconds.items()},
        "examples_per_second": {
            m: {n: round(shape.batch * 1e3 / ms) for n, ms in one.items()} for m, one in milliseconds.items()
        },
        **asdict(shape),
        "threads": options.threads,
        **circumstances(),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    as_launched()
    main()
