"""How fast are small jobs, where not arithmetic but every step's own costs rule? Beside FuxiCTR, in one process each.

DeepFM of dim 16, MLP 128-64, Adam on everything (FuxiCTR's dense over whole tables, ours on the rows a batch touches),
on the data of the tests; and, which is not small, of the speed shape (shape.py) at a million table rows. Ours is
`sparta train` as users run it; FuxiCTR is its own base model, layers, loader and training loop (2.3.10), without its
progress bar and without the second process that reads its rows by default, which made it a third slower on two cores;
nor has it the settings of memory and threads that our launcher makes. Both are timed over their training epochs after
the first, evaluations and saves left out; each figure is a run of its own, those of a pair take turns, on the same
threads. Where FuxiCTR is far slower than it is known to be on a quiet machine of this kind, the comparison is `void`.

FuxiCTR is installed beside us or in an environment of its own: pip install fuxictr==2.3.10

    SPARTA_DATA=... python benchmarks/small.py [--pairs 5] [--epochs 4] [--only speed_shape] [--fuxictr PYTHON]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from measured import as_a_stranger, circumstances, ratio
from shape import HIDDEN, Shape, trained, write

JOBS = Path(__file__).parents[1] / "launcher" / "jobs"
SPEED, STEPS = "speed_shape", 50
"""Made here, of so many steps."""
BATCH = {"anime": 2048, "criteo_tb80k": 512, "census_income": 1024, SPEED: Shape().batch}


KNOWN = {"anime": 269_000, "criteo_tb80k": 46_000, "census_income": 57_000, SPEED: 29_000}
"""Examples a second of FuxiCTR on a quiet machine of this kind."""
NEAR = 0.75
"""How near it has to come to these."""


def title(name: str) -> str:
    """What a ratio is called."""
    return f"{name}, batch {BATCH[name]}, to FuxiCTR"


def void(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What has no answer."""
    asked = [name for name in BATCH if title(name) in found]
    return [title(name) for name in asked if found[title(name)]["theirs"] < NEAR * KNOWN[name]]


def prepare(name: str, out: Path) -> None:
    """The dataset as our jobs prepare it."""
    if name == SPEED:
        write(out, Shape(), STEPS)
        return
    command = [sys.executable, "-m", "sparta.launcher", "prepare", str(JOBS / f"{name}.prepare.yaml")]
    subprocess.run([*command, "--out", str(out)], check=True, capture_output=True)


def hidden(name: str) -> list[int]:
    """Units of the MLP."""
    return list(HIDDEN) if name == SPEED else [128, 64]


def ours(name: str, data: Path, epochs: int) -> float:
    """Examples a second of `sparta train`."""
    job: dict[str, Any] = {
        "name": name,
        "data": {"path": str(data), "batch_size": BATCH[name]},
        "model": {"name": "deepfm", "embedding_dim": 16, "args": {"hidden": hidden(name)}},
        "optim": {"tables": {"name": "adam", "lr": 1e-3}, "dense": {"name": "adam", "lr": 1e-3}},
        "train": {"epochs": epochs, "early_stop": None, "ranks": 1, "device": "cpu"},
    }
    return after_first_epoch(trained(job)[0])


def after_first_epoch(lines: Sequence[Mapping[str, Any]]) -> float:
    """Examples a second; each line says how many there were by then, and how fast they went since the one before."""
    samples, seconds, before = 0, 0.0, 0
    for line in lines:
        if line["epoch"] > 0:
            samples += line["examples"] - before
            seconds += (line["examples"] - before) / line["examples_per_second"]
        before = line["examples"]
    return samples / seconds


def theirs(python: str, name: str, data: Path, epochs: int) -> tuple[float, dict[str, str]]:
    """Examples a second of FuxiCTR, and what it ran with."""
    script = Path(__file__).with_name("fuxictr_deepfm.py")
    numbers = map(str, (BATCH[name], epochs, *hidden(name)))
    command = [python, str(script), str(data), *numbers]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=as_a_stranger())
    said = json.loads(done.stdout.splitlines()[-1])
    return said["examples_per_second"], said["versions"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--only", choices=BATCH)
    parser.add_argument("--fuxictr", default=sys.executable, help="a Python that has it")
    options = parser.parse_args()
    if options.epochs < 2:
        parser.error(f"--epochs {options.epochs}: the first does not count; give 2 or more")
    found, ratios = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name in [options.only] if options.only else BATCH:
            data = Path(folder) / name
            prepare(name, data)
            mine, his = [], []
            for turn in range(2 * options.pairs):
                if turn % 4 in (0, 3):  # each is as often first
                    mine.append(ours(name, data, options.epochs))
                else:
                    rate, versions = theirs(options.fuxictr, name, data, options.epochs)
                    his.append(rate)
            found[title(name)] = {
                "ours": round(statistics.median(mine)),
                "theirs": round(statistics.median(his)),
            }
            ratios[title(name)] = ratio(mine, his)
            print(name, found[title(name)], ratios[title(name)], file=sys.stderr, flush=True)
    report = {"examples_per_second": found, "ratios": ratios, "void": void(found), "their_versions": versions}
    print(json.dumps({**report, **circumstances()}, indent=1))


if __name__ == "__main__":
    main()
