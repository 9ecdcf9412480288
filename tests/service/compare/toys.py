"""A study whose cells are done at once: their results and scores are made up, in ordinary run directories."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sparta.models.schema import Feature, Schema
from sparta.service.auc import auc
from sparta.service.compare.cells import Cell, Folder
from sparta.service.compare.run import Part, Runner
from sparta.service.compare.study import load_study

ROWS = 400

JOB = """
name: toy
data: {path: data, batch_size: 32}
model: {name: deepfm}
train: {early_stop: {}}
"""
STUDY: dict[str, Any] = {
    "name": "toy",
    "seeds": [1, 2],
    "tuning": {"seed": 9, "model": "deepfm"},
    "resamples": 20,
    "data": {"toy": {"job": "job.yaml"}},
    "models": {
        "deepfm": {"label": "DeepFM", "set": {"model.name": "deepfm"}},
        "dcn": {"label": "DCN", "set": {"model.name": "dcn"}},
    },
    "optimizers": {
        "adam": {"label": "Adam", "set": {"optim.tables.name": "adam"}, "grid": {"lr": [0.1, 0.2]}},
        "helen": {
            "label": "Helen",
            "set": {"optim.tables.name": "helen"},
            "grid": {"lr": [0.1], "rho": [0.5, 0.7]},
        },
    },
}

Strength = Callable[[Cell], float | None]
"""How much a cell's scores have to do with the labels; None if it diverges."""


def write(place: Path, **changes: Any) -> Path:
    """The study's file in `place`, with what changes on top, beside a job and the schema of its dataset."""
    (place / "job.yaml").write_text(JOB.replace("path: data", f"path: {place / 'data'}"))
    (place / "data").mkdir(exist_ok=True)
    splits = {"train": 1000, "valid": 100, "test": ROWS}
    Schema(sparse=(Feature(name="a", rows=3),), labels=("click",), splits=splits, fingerprint="f").save(
        place / "data"
    )
    path = place / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
    return path


def folder(place: Path, **changes: Any) -> Folder:
    """The study and the folder of its work."""
    made = Folder(place / "work", load_study(write(place, **changes)))
    made.make()
    return made


def folder_of(place: Path) -> Folder:
    """The study that is written there, read anew."""
    return Folder(place / "work", load_study(place / "study.yaml"))


def whole(of: Folder) -> Part:
    """All of a study."""
    return Part(tuple(of.study.data), tuple(of.study.models), tuple(of.study.optimizers))


def labels() -> np.ndarray:
    return np.arange(ROWS) % 3 == 0


def finish(of: Folder, cell: Cell, strength: float | None) -> None:
    """Leave in a cell's run directory what `sparta train` would."""
    run = of.run(cell)
    run.mkdir(parents=True, exist_ok=True)
    if strength is None:
        (run / "DIVERGED").write_text("step 3: the loss is not finite; lower the rate\n")
        return
    noise = np.random.default_rng(cell.seed).standard_normal(ROWS)
    scores = (strength * labels() + noise).astype(np.float32)
    value = auc(scores, labels(), np.ones(ROWS, np.float32))
    splits = {"valid": {"click": {"auc": value, "logloss": 1 - value, "ne": 1.0}}}
    if cell.final:
        splits["test"] = splits["valid"]
        (run / "scores").mkdir(exist_ok=True)
        kept = np.stack([scores, labels().astype(np.float32), np.ones(ROWS, np.float32)], axis=1)
        np.save(run / "scores" / "rank-00000.npy", kept)
    said = {"eval": splits, "steps": 7, "best_step": 5, "seconds": 2.0, "versions": {"sparta": "0"}}
    said |= {"machine": "x86_64", "device": "cpu", "ranks": 1, "threads": 2}
    (run / "result.json").write_text(json.dumps(said))


def runner(of: Folder, strength: Strength, ran: list[str] | None = None) -> Runner:
    """Does cells one after the other, and notes their names in `ran`."""

    def run(cells: Sequence[Cell]) -> Iterator[tuple[Cell, float | None]]:
        for cell in cells:
            if ran is not None:
                ran.append(cell.name)
            finish(of, cell, strength(cell))
            yield cell, 1.0

    return run


def better(cell: Cell) -> float:
    """Helen is; and of her, `rho` 0.7."""
    return 1.0 + (cell.optimizer == "helen") + dict(cell.knobs).get("rho", 0.0)
