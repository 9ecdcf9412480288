"""One process of the study: stays up, joins a world of one rank, trains cell after cell on one thread."""

import os
import shutil
import signal
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.quality_study import ROOT, Record
from sparta.launcher.rank import append_to
from sparta.launcher.tether import tether
from sparta.models.errors import DataError
from sparta.service import build
from sparta.service.config import Job, load_job
from sparta.service.run import RunDirectory, versions
from sparta.service.scoring import logits
from sparta.service.train import train, trained
from sparta.service.world import World, world
from sparta.sharding.quiet import silence

_here: list[World] = []
_open = ExitStack()


@dataclass(frozen=True)
class Task:
    """What a worker needs to know of a cell."""

    job: str
    edits: list[str]
    run: Path
    """Its run directory; whatever is there is replaced."""
    predictions: Path | None
    """Where the test split's logits and labels go; None for a cell of the tuning."""


def start(logs: Path) -> None:
    """Make this process a worker."""
    tether(signal.SIGKILL)
    append_to(logs / f"worker-{os.getpid()}.log", 1, 2)
    silence()
    torch.set_num_threads(1)
    _here.append(_open.enter_context(world("cpu")))


def run(task: Task) -> Record:
    """Train one cell; its scores and what it took. A run that diverged has no scores."""
    began = time.perf_counter()
    shutil.rmtree(task.run, ignore_errors=True)
    job, place = load_job(ROOT / task.job, task.edits), RunDirectory(task.run)
    record: Record = {"valid": None, "date": time.strftime("%Y-%m-%d"), "versions": versions()}
    try:
        result = train(job, place, _here[0])
    except DataError as error:
        return {**record, "error": str(error)}
    splits = ("valid",) if task.predictions is None else ("valid", "test")
    for split in splits:
        (scores,) = result["eval"][split].values()  # one label
        record[split] = {metric: scores[metric] for metric in ("auc", "logloss")}
    record |= {key: result[key] for key in ("steps", "best_step", "stopped_early", "examples_per_second")}
    if task.predictions is not None:
        save_predictions(job, place, task.predictions)
    shutil.rmtree(place.checkpoints)
    record["seconds"] = round(time.perf_counter() - began, 1)
    return record


def save_predictions(job: Job, place: RunDirectory, path: Path) -> None:
    """Logits and labels of the test split, (2, rows) in float32, of the run's best weights."""
    schema, sharded = trained(place, job, _here[0])
    loader = build.scoring_loader(job.data.path, schema, "test", job.data.batch_size, _here[0])
    batches = [
        torch.stack([scores[:, 0], batch.labels[:, 0]])[:, batch.slots.weights > 0]
        for batch, scores in logits(sharded, loader, _here[0])
    ]
    draft = path.with_suffix(".draft")
    with draft.open("wb") as file:
        np.save(file, torch.cat(batches, dim=1).numpy())
    draft.replace(path)
