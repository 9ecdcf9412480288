"""What checkpoints cost: the stall of a save beside a synchronous one, throughput with one every 200 steps, and
resuming a table of 10M rows with Adam's state beside reading the same bytes with their checksums.

DeepFM of the speed shape (benchmarks/shape.py), one process. Runs with and without saves take turns, so that
whatever else the machine does hits both alike; prints one JSON object.

    python benchmarks/checkpoint.py [--rounds 9] [--rows 1000000] [--large 10000000] [--folder DIR]
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from measured import as_launched, circumstances, cores, ratio
from shape import MILLION, Shape
from turns import alone, batches, built

from sparta.service.checkpoint import manifest as disk
from sparta.service.checkpoint.manifest import Manifest
from sparta.service.checkpoint.store import WEIGHTS, Checkpoints


class Saved:
    """A model with its step, and checkpoints of both."""

    def __init__(self, rows: int, folder: Path, **how: Any) -> None:
        self.sharded, self.step = built({"name": "adam"}, Shape(rows=rows))
        self.checkpoints = Checkpoints(folder, keep=1, **how)
        self.taken = 0

    def state(self) -> dict[str, Any]:
        return {**self.sharded.state_dict(), **self.step.state_dict()}

    def save(self) -> float:
        """Begin a save; the seconds that the training stands."""
        self.taken += 1
        began = time.perf_counter()
        self.checkpoints.save(self.state(), Manifest(self.taken, {}))
        return time.perf_counter() - began


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def stalls(rounds: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds that a save holds the steps up: copied and written beside, or written at once."""
    beside = Saved(options.rows, folder / "beside")
    at_once = Saved(options.rows, folder / "at_once", background=False)
    taken: dict[str, list[float]] = {"beside": [], "at_once": []}
    for turn in range(rounds + 1):
        for name, saved in [("beside", beside), ("at_once", at_once)][:: 1 if turn % 2 else -1]:
            taken[name].append(saved.save())
            saved.checkpoints.wait()
    return {
        "bytes": beside.checkpoints.log.bytes,
        "first_stall_seconds": round(taken["beside"][0], 4),
        "stall_seconds": round(statistics.median(taken["beside"][1:]), 4),
        "synchronous_seconds": round(statistics.median(taken["at_once"][1:]), 4),
        "ratio": ratio(taken["beside"][1:], taken["at_once"][1:]),
    }


def overhead(rounds: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Time of so many steps with one save among them, to that without."""
    saved = Saved(options.rows, folder / "overhead")
    given = batches(Shape(rows=options.rows), 16)

    def train() -> None:
        for number in range(options.steps):
            last = saved.step(given[number % len(given)])
        last.item()

    def with_a_save() -> None:
        saved.save()
        train()

    saved.save()
    train()
    saved.checkpoints.wait()
    taken: dict[str, list[float]] = {"plain": [], "saving": []}
    for turn in range(rounds):
        for name, work in [("plain", train), ("saving", with_a_save)][:: 1 if turn % 2 else -1]:
            taken[name].append(seconds(work))
            saved.checkpoints.wait()
    return {
        "plain_examples_per_second": round(options.steps * Shape().batch / statistics.median(taken["plain"])),
        "ratio": ratio(taken["saving"], taken["plain"]),
        "save_seconds": round(saved.checkpoints.log.seconds or 0.0, 2),
    }


def resuming(rounds: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Finding, checking and loading a checkpoint, to reading its files once with their checksums."""
    saved = Saved(options.large, folder / "large")
    saved.save()
    saved.checkpoints.wait()
    storage = saved.checkpoints.storage
    (name,) = disk.committed(storage)
    manifest = disk.read_manifest(storage, name)

    def resume() -> None:
        found = saved.checkpoints.newest()
        assert found is not None
        state = saved.state()
        saved.checkpoints.load(state, found[0], checked=True)
        saved.step.load_state_dict({key: state[key] for key in state if not key.startswith(WEIGHTS)})

    def read() -> None:
        for file in manifest.files:
            disk.sha256(storage, f"{name}/{file}")

    taken: dict[str, list[float]] = {"resume": [], "read": []}
    for turn in range(rounds + 1):
        for of, work in [("read", read), ("resume", resume)][:: 1 if turn % 2 else -1]:
            taken[of].append(seconds(work))
    return {
        "table_rows": options.large,
        "bytes": manifest.bytes,
        "resume_seconds": round(statistics.median(taken["resume"][1:]), 2),
        "read_seconds": round(statistics.median(taken["read"][1:]), 2),
        "ratio": ratio(taken["resume"][1:], taken["read"][1:]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", type=int, default=MILLION)
    parser.add_argument("--large", type=int, default=10 * MILLION)
    parser.add_argument("--steps", type=int, default=200, help="between two checkpoints")
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    parser.add_argument("--threads", type=int, default=cores())
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name, alone(options.threads):
        folder = Path(name)
        parts = {
            "stall of a save to a synchronous one": stalls(5 * options.rounds, folder, options),
            f"time with a save every {options.steps} steps": overhead(options.rounds, folder, options),
            "resuming to reading with checksums": resuming(options.rounds, folder, options),
        }
    report = {
        "ratios": {name: part.pop("ratio") for name, part in parts.items()},
        "figures": parts,
        "table_rows": options.rows,
        "threads": options.threads,
        **circumstances(),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    as_launched()
    main()
