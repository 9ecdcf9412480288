"""`train`: a job, start to finish - build, train, test, result."""

from pathlib import Path
from typing import Any, Literal

import torch

from sparta.models.schema import Schema
from sparta.service import build
from sparta.service.check import check_forward
from sparta.service.checkpoint import Checkpoints
from sparta.service.config import Job
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
    check_forward(job, schema)
    model = build.model(job, schema)
    plan = build.plan(job, model, ranks=world.ranks, local_ranks=world.local_ranks, device=world.device.type)
    loader = build.train_loader(job, schema, world)
    for split in set(schema.splits) - {"train"}:  # damage there must not come to light after the training
        build.scoring_loader(Path(job.data.path), schema, split, job.data.batch_size, world)
    sharded = build.sharded(job, model, plan, world)
    step = build.step(job, sharded, world)
    world.once(lambda: run.claim(job, schema))
    if world.first:
        plan.save(run.plan)
    total_steps = build.total_steps(job, loader.steps)
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
            watch=build.watch(job),
            stop_early=job.train.early_stop is not None,
            checkpoints=checkpoints,
            history=History(run.history) if world.first else None,
            progress=progress,
            world=world,
            total_steps=total_steps,
            log_every=job.train.log_every,
            evaluate_every=job.train.evaluate_every,
        ).run()
    tested = tested_weights(job)
    if tested == "best":
        checkpoints.load(sharded, tested)
    scores = {
        split: score(job, schema, sharded, world, split)
        for split in ("valid", "test")
        if split in schema.splits
    }
    result = summary(job, outcome, scores, world)
    frequent = step.most_frequent()
    if frequent:
        result["most_frequent"] = {
            name: {"id": row, "occurrences": count} for name, (count, row) in frequent.items()
        }
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


def tested_weights(job: Job) -> Literal["best", "last"]:
    """Which weights a run's result is about: the best if it could stop early, else the last."""
    return "best" if job.train.early_stop else "last"


def trained(
    run: RunDirectory, job: Job, world: World, which: Literal["best", "last"] | None = None
) -> tuple[Schema, Sharded]:
    """A run's dataset and its model with weights, on any number of ranks and either kind of device.

    On as many ranks as it was trained the run's own plan is used, otherwise the planner makes another.

    Raises:
        DataError: the dataset was prepared anew since, so that ids mean something else.
    """
    schema = build.schema(job)
    run.check_same_data(schema)
    # Scoring needs no optimizer state: sgd has none, and every device has sgd.
    stateless = job.optim.tables.model_copy(update={"name": "sgd"})
    tables = {name: table.model_copy(update={"optimizer": None}) for name, table in job.tables.items()}
    same = world.ranks == job.train.ranks
    scoring = job.model_copy(
        update={
            "optim": job.optim.model_copy(update={"tables": stateless}),
            "tables": tables,
            "sharding": job.sharding if same else job.sharding.model_copy(update={"plan": "auto"}),
        }
    )
    model = build.model(scoring, schema)
    plan = build.plan(
        scoring,
        model,
        ranks=world.ranks,
        local_ranks=world.local_ranks,
        device=world.device.type,
        forced=run.plan if same else None,
    )
    sharded = build.sharded(scoring, model, plan, world)
    Checkpoints(run.checkpoints).load(sharded, which or tested_weights(job))
    return schema, sharded


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
        "weights": tested_weights(job),
        "eval": scores,
        "ranks": world.ranks,
        "threads": torch.get_num_threads(),
        "device": world.device.type,
        "config_hash": job.hash(),
        "versions": versions(),
    }
