"""`train`: a job, start to finish - build, train, test, result."""

from pathlib import Path
from typing import Any, Literal

import torch

from sparta.models import zoo
from sparta.models.schema import Schema
from sparta.optim.schedule import EarlyStop
from sparta.service import build
from sparta.service.checkpoint import Checkpoints
from sparta.service.config import EarlyStopSettings, Job
from sparta.service.curves import draw
from sparta.service.history import History
from sparta.service.progress import Progress
from sparta.service.report import Scores, result_table, show
from sparta.service.run import RunDirectory, versions
from sparta.service.scoring import evaluate
from sparta.service.trainer import Outcome, Trainer
from sparta.service.world import World
from sparta.sharding.shard import Sharded


def train(job: Job, run: RunDirectory, world: World) -> dict[str, Any]:
    """Run the job in `run`; the content of result.json, on all ranks.

    Everything that can be refused is refused before the directory is claimed.
    """
    world.once(run.check_free)
    schema = build.schema(job)
    model = build.model(job, schema)
    plan = build.plan(
        job,
        zoo.tables(model),
        ranks=world.ranks,
        local_ranks=world.local_ranks,
        device=world.device.type,
    )
    loader = build.train_loader(job, schema, world)
    for split in set(schema.splits) - {"train"}:  # damage there must not come to light after the training
        build.scoring_loader(Path(job.data.path), schema, split, job.data.batch_size, world)
    sharded = build.sharded(job, model, plan, world)
    step = build.step(job, sharded, world)
    world.once(lambda: run.claim(job))
    if world.first:
        plan.save(run.plan)
    total_steps = loader.steps * job.train.epochs
    if job.train.max_steps is not None:
        total_steps = min(total_steps, job.train.max_steps)
    stop = job.train.early_stop or EarlyStopSettings()
    checkpoints = Checkpoints(run.checkpoints)
    with Progress(total_steps, rank=world.rank) as progress:
        outcome = Trainer(
            sharded=sharded,
            step=step,
            loader=loader,
            evaluate=(lambda: score(job, schema, sharded, world, "valid"))
            if "valid" in schema.splits
            else None,
            schedule=build.schedule(job, total_steps),
            plateau=build.plateau(job),
            watch=EarlyStop(metric=stop.metric, patience=stop.patience, min_delta=stop.min_delta),
            stop_early=job.train.early_stop is not None,
            checkpoints=checkpoints,
            history=History(run.history) if world.first else None,
            progress=progress,
            world=world,
            total_steps=total_steps,
            log_every=job.train.log_every,
            evaluate_every=job.train.evaluate_every,
        ).run()
    if job.train.early_stop:
        checkpoints.load(sharded, "best")
    scores = {
        split: score(job, schema, sharded, world, split)
        for split in ("valid", "test")
        if split in schema.splits
    }
    result = summary(job, outcome, scores, world)
    if world.first:
        run.write_result(result)
        draw(run.history, run.curves)
        show(result_table(result, schema), run.path)
    return result


def score(job: Job, schema: Schema, sharded: Sharded, world: World, split: str) -> Scores:
    """Metrics of one split."""
    down = job.data.negatives
    loader = build.scoring_loader(Path(job.data.path), schema, split, job.data.batch_size, world)
    return evaluate(
        sharded,
        loader,
        world,
        schema,
        group=job.train.gauc_by,
        negatives_kept=1.0 if down is None or split in down.splits else down.kept,
    )


def trained(run: RunDirectory, world: World, which: Literal["best", "last"]) -> tuple[Job, Schema, Sharded]:
    """A finished run's job, schema and model with its weights, on any number of ranks.

    On as many ranks as it was trained the run's own plan is used, otherwise the planner makes another.
    """
    job = run.read_job()
    same = world.ranks == job.train.ranks
    if not same:
        auto = job.sharding.model_copy(update={"plan": "auto"})
        job = job.model_copy(update={"sharding": auto})
    schema = build.schema(job)
    model = build.model(job, schema)
    plan = build.plan(
        job,
        zoo.tables(model),
        ranks=world.ranks,
        local_ranks=world.local_ranks,
        device=world.device.type,
        forced=run.plan if same else None,
    )
    sharded = build.sharded(job, model, plan, world)
    Checkpoints(run.checkpoints).load(sharded, which)
    return job, schema, sharded


def summary(job: Job, outcome: Outcome, scores: dict[str, Scores], world: World) -> dict[str, Any]:
    """The content of result.json."""
    return {
        "name": job.name,
        "steps": outcome.steps,
        "examples": outcome.examples,
        "seconds": round(outcome.seconds, 3),
        "examples_per_second": round(outcome.examples / max(outcome.seconds, 1e-9), 1),
        "best_step": outcome.best_step,
        "stopped_early": outcome.stopped_early,
        "eval": scores,
        "ranks": world.ranks,
        "threads": torch.get_num_threads(),
        "device": world.device.type,
        "config_hash": job.hash(),
        "versions": versions(),
    }
