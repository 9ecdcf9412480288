"""Going on with a run: whether it is the same job, and everything that has to be as it was."""

import os
import random
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from sparta.models.errors import ConfigError, DataError
from sparta.models.schema import Schema, load_schema
from sparta.service.checkpoint.manifest import Manifest
from sparta.service.checkpoint.store import RNG, WEIGHTS, Checkpoints
from sparta.service.config import Job
from sparta.service.history import read_history
from sparta.service.machine import processor, versions
from sparta.service.run import RunDirectory
from sparta.service.step import Step
from sparta.service.trainer import Trainer
from sparta.service.world import World
from sparta.sharding.collectives import gather
from sparta.sharding.shard import Sharded

MAY_CHANGE = (
    "data.path",  # the same data elsewhere; its fingerprint is compared
    "data.prefetch",
    "data.watch.folder",  # the same partitions elsewhere; their names are below it
    "data.watch.poll_seconds",
    "data.watch.idle_seconds",
    "data.watch.settle_seconds",
    "sharding",
    "train.ranks",
    "train.device",
    "train.epochs",
    "train.max_steps",
    "train.test",
    "train.log_every",
    "checkpoint.every",
    "checkpoint.keep",
    "checkpoint.background",
    "checkpoint.grace_seconds",
    "tolerate",
    "metrics",
    "kubernetes",
)
"""Keys of a job that may differ when a run goes on: the samples and their order stay."""


def check_resumable(run: RunDirectory, job: Job, schema: Schema) -> None:
    """Refuse to go on with another job, or on other data.

    Raises:
        ConfigError: naming the first key that differs.
        DataError: the dataset was prepared anew.
    """
    before = run.read_job().model_dump(mode="json")
    for key, old, new in _differences(before, job.model_dump(mode="json")):
        if not any(key == free or key.startswith(f"{free}.") for free in MAY_CHANGE):
            raise ConfigError(
                f"{run.path}: {key} was {old!r}, the job says {new!r}; resume with the job of the run, or start "
                f"another from its weights: --from {run.path} --run-dir DIR"
            )
    run.check_same_data(schema)
    rows = load_schema(run.path).splits.get("train")
    if rows != schema.splits["train"]:
        raise DataError(
            f"{run.path}: was trained on {rows} rows, the dataset has {schema.splits['train']}; resume on the same "
            "rows, or start another run from its weights with --from"
        )


def state_of(sharded: Sharded, step: Step, world: World) -> dict[str, Any]:
    """All that a checkpoint holds in tensors; shares memory with the model and its optimizers."""
    return {**sharded.state_dict(), **step.state_dict(), **random_state(world.rank)}


def manifest_of(job: Job, schema: Schema, training: Mapping[str, Any], world: World) -> Manifest:
    """What a checkpoint says of itself."""
    about = {"name": job.name, "at": round(time.time(), 3), **circumstances(job, world)}
    return Manifest(training["step"], training, schema.model_dump(mode="json"), about=about)


def circumstances(job: Job, world: World) -> dict[str, Any]:
    """What has to be the same for a run to come out the same to the last bit."""
    return {
        "ranks": world.ranks,
        "threads": torch.get_num_threads(),
        "device": world.device.type,
        "machine": processor() if world.device.type == "cpu" else torch.cuda.get_device_name(world.device),
        "config_hash": job.hash(),
        "versions": versions(),
    }


def changes(manifest: Manifest, job: Job, world: World) -> str:
    """What is no longer as it was when a checkpoint was taken, if anything."""
    now = circumstances(job, world)
    return ", ".join(
        f"{key} {manifest.about.get(key)} -> {now[key]}"
        for key in ("ranks", "threads", "device", "machine", "versions")
        if manifest.about.get(key) != now[key]
    )


def restore(
    name: str,
    manifest: Manifest,
    checkpoints: Checkpoints,
    sharded: Sharded,
    step: Step,
    trainer: Trainer,
    world: World,
) -> None:
    """Put everything where a checkpoint left it, under any plan and on any number of ranks. Collective."""
    state = state_of(sharded, step, world)
    mine = f"{RNG}{world.rank}"
    if manifest.about["ranks"] != world.ranks:  # the generators of other ranks are of no use
        del state[mine]
    checkpoints.load(state, name, checked=True)
    random = state.pop(mine, None)
    step.load_state_dict({key: value for key, value in state.items() if not key.startswith(WEIGHTS)})
    if random:
        set_random_state(random)
    trainer.load_state_dict(manifest.training)


def check_there(run: RunDirectory, job: Job, checkpoints: Checkpoints) -> None:
    """Refuse to begin anew where the history, or a result, says that there must have been a checkpoint.

    Raises:
        DataError: it is not where it should be, so beginning anew would overwrite what the run has come to.
    """
    steps = [line["step"] for line in read_history(run.history)] if run.history.exists() else []
    finished, far = run.result.exists(), bool(steps) and steps[-1] > 2 * job.checkpoint.every
    if finished or far:
        come = "has finished" if finished else f"has come to step {steps[-1]}"
        remove = [str(run.result)] * finished + [str(run.history)] * far
        raise DataError(
            f"{checkpoints.storage.root}: holds no complete checkpoint, but the run {come}; see that the storage is "
            f"there, or remove {' and '.join(remove)} to begin anew"
        )


def fits(checkpoints: Checkpoints, state: Mapping[str, Any], seconds: float) -> bool:
    """Whether a save of a state would be done on every rank in so many seconds. Collective."""
    # torchrun, which the launcher starts, kills the ranks so long after SIGTERM, whatever the job says.
    limit = float(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "inf"))
    return max(gather(checkpoints.expected_seconds(state))) < min(seconds, limit)


def _differences(old: Any, new: Any, at: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, old, new) of the leaves that differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from _differences(old.get(key), new.get(key), f"{at}.{key}" if at else key)
    elif old != new:
        yield at, old, new


def random_state(rank: int) -> dict[str, Any]:
    """The random generators of this rank, which a user's model may draw from; our own layers hash instead."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state()
    return {f"{RNG}{rank}": state}


def set_random_state(mine: Mapping[str, Any]) -> None:
    """Take up what `random_state` gave to this rank."""
    random.setstate(mine["python"])
    np.random.set_state(mine["numpy"])
    torch.set_rng_state(mine["torch"])
    if "cuda" in mine and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.set_rng_state(mine["cuda"])
