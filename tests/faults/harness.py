"""What a run has come to, and whether a kill cost more than was promised."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
import yaml

from sparta.service.checkpoint import inspect
from sparta.service.checkpoint import manifest as disk
from sparta.service.checkpoint.files import read, sizes
from sparta.service.checkpoint.storage import Storage
from sparta.service.heartbeat import read_beats
from tests.service.toys import job_of

WALL_CLOCK = ("examples_per_second",)
"""Fields of history.jsonl that depend on the clock."""


def write_job(folder: Path, data: Path, /, **sections: dict[str, Any]) -> Path:
    """A job on two ranks with Helen, dropout, batch norm, an evaluation in the middle and many checkpoints."""
    sections = {
        "optim": {
            "tables": {"name": "helen", "lr": 0.02, "rho": 0.05, "weight_decay": 0.5, "l2": 1e-3},
            "dense": {"lr": 0.01},
            "schedule": {"decay": "linear"},
            "plateau": {"patience": 0, "factor": 0.5},
        },
        "train": {
            "epochs": 1,
            "log_every": 2,
            "evaluate_every": 8,
            "ranks": 2,
            "early_stop": {"patience": 9},
        },
        "checkpoint": {"every": 3, "keep": 2},
        **sections,
    }
    path = folder / "job.yaml"
    path.write_text(job_of(data, **sections).dump())
    return path


def history_of(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's history without what the clock decides."""
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in WALL_CLOCK} for line in lines]


def weights_of(run: Path, name: str | None = None) -> dict[str, torch.Tensor]:
    """Every tensor of a run's newest checkpoint, optimizer state and counts included, or of the one named."""
    storage = Storage(run / "checkpoints")
    name = name or disk.committed(storage)[-1]
    held = {key: size for key, size in sizes(storage, name).items() if size is not None}
    state: dict[str, Any] = {key: torch.empty(size[0], dtype=size[1]) for key, size in held.items()}
    read(state, storage, name, alone=True)
    return state


def digests(run: Path) -> dict[str, str]:
    """sha256 of the newest checkpoint's tensors and of the history, and of the result's metrics."""
    weights = hashlib.sha256()
    for name, tensor in sorted(weights_of(run).items()):
        weights.update(name.encode() + tensor.numpy().tobytes())
    result = json.loads((run / "result.json").read_text())
    kept = {key: result[key] for key in ("eval", "steps", "examples", "best_step", "stopped_early")}
    return {
        "weights": weights.hexdigest(),
        "history": hashlib.sha256(json.dumps(history_of(run)).encode()).hexdigest(),
        "result": hashlib.sha256(json.dumps(kept).encode()).hexdigest(),
    }


def losses(run: Path, ranks: int = 2) -> list[str]:
    """What a kill has broken: checkpoints that are committed and not complete, and steps beyond the promise.

    At most one interval and one save may be lost.
    """
    storage = Storage(run / "checkpoints")
    entries = inspect.entries(storage, every_byte=True)
    told = [f"{entry.name} is committed but {entry.problem}" for entry in entries if entry.problem]
    every = yaml.safe_load((run / "job.yaml").read_text())["checkpoint"]["every"]
    newest = max((entry.step for entry in entries if entry.state == "complete" and entry.step), default=0)
    reached = max((beat["step"] for beat in read_beats(run / "logs" / "train", ranks).values()), default=0)
    if reached - newest > 2 * every:
        told.append(
            f"step {reached} was reached, but the newest checkpoint is of step {newest}, every {every}"
        )
    return told
