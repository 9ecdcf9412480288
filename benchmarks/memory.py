"""How much memory does training take, beside what it cannot do without?

The speed shape (benchmarks/shape.py) at 10M table rows with Adam on the tables (engine rows), fp32, one process: its
largest resident memory after so many steps on batches in memory, without what it held before any table was made (the
interpreter, the libraries, the process group). To be divided by weights and Adam's two moments of the tables: rows x
columns x 3 x 4 bytes, without padding. `dnn` has 16 columns a row and nothing else, `deepfm` a 17th in the 1-wide
twins. The second figure has a checkpoint copied and written beside the steps. Every run is a process of its own;
prints one JSON object: ratios, megabytes, machine.

    python benchmarks/memory.py [--runs 3] [--rows 10000000] [--folder DIR]

What there is beside weights and moments, megabytes of 1,920 at 10M rows x 16: a stamp a row 40; code that is loaded
when tables are made 95; compiled kernels, activations and their gradients 150. The 1-wide twins of `deepfm` are stored
4 wide, as FBGEMM wants them, and so are their moments: 360 of 2,040, and a stamp a row once more. A checkpoint is a
copy of all state, so that writing it stops nothing: weights and moments once more, from the first one on. Initial
weights are hashed in pieces of 2 MB a temporary; with 8 MB training took 1.18 in place of 1.15.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from measured import as_launched, circumstances, cores, ratio, resident
from shape import MILLION, Shape
from turns import alone, batches, built

from sparta.service.checkpoint.manifest import Manifest
from sparta.service.checkpoint.store import Checkpoints

MODELS = ("dnn", "deepfm")
FLOAT_BYTES = 4
DRIFT = 0.03
"""Memory hardly depends on what else the machine does: runs of different days lay 1% apart."""


def once(shape: Shape, folder: Path, options: argparse.Namespace) -> dict[str, int]:
    """Bytes of one training, in this process."""
    with alone(options.threads):
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the most so far is what there is now
        sharded, step = built({"name": "adam"}, shape)
        made, given = resident(), batches(shape, 8)

        def train() -> None:
            for number in range(options.steps):
                last = step(given[number % len(given)])
            last.item()

        train()
        trained = resident()
        checkpoints = Checkpoints(folder, keep=1)
        checkpoints.save({**sharded.state_dict(), **step.state_dict()}, Manifest(options.steps, {}))
        train()
        checkpoints.finish()
        least = sum(3 * FLOAT_BYTES * rows * dim for rows, dim in step.tables.shapes.values())
    return {
        "before": before,
        "least": least,
        "made": made - before,
        "trained": trained - before,
        "saved": resident() - before,
    }


def apart(model: str, options: argparse.Namespace) -> dict[str, int]:
    """Bytes of one training, in a process of its own."""
    numbers = {name: str(getattr(options, name)) for name in ("rows", "steps", "threads")}
    command = [sys.executable, __file__, "--child", model, *(f"--{k}={v}" for k, v in numbers.items())]
    command += [f"--folder={options.folder}"] if options.folder else []
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, int] = json.loads(told)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rows", type=int, default=10 * MILLION)
    parser.add_argument("--steps", type=int, default=20, help="before the checkpoint, and beside it")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--child", choices=MODELS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            print(json.dumps(once(Shape(options.child, options.rows), Path(folder), options)))
        return
    runs: dict[str, list[dict[str, int]]] = {model: [] for model in options.models}
    for _ in range(options.runs):
        for model in options.models:
            runs[model].append(apart(model, options))
    ratios = {}
    for model, found in runs.items():
        least = [one["least"] for one in found]
        for kind, title in (("trained", "memory"), ("saved", "memory with a checkpoint")):
            name = f"{title} of training {model} to its tables and moments"
            ratios[name] = ratio([one[kind] for one in found], least, DRIFT)
    report = {
        "ratios": ratios,
        "megabytes": {
            model: {kind: round(statistics.median(one[kind] for one in found) / 1e6) for kind in found[0]}
            for model, found in runs.items()
        },
        **{name: getattr(options, name) for name in ("rows", "steps", "threads")},
        **circumstances(),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    as_launched()
    main()
