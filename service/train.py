"""`train`: a job, start to finish - build, train, test, result."""

from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from typing import Any, Literal

from torch import Tensor

from sparta.models.batch import Batch
from sparta.models.errors import DataError, DivergedError, SpartaError
from sparta.models.schema import Schema
from sparta.service import build, build_run
from sparta.service.check import check_forward
from sparta.service.checkpoint.export import load_export
from sparta.service.checkpoint.find import check_free, find, is_export, of_step, own
from sparta.service.checkpoint.log import Log
from sparta.service.checkpoint.storage import Storage
from sparta.service.config import Job
from sparta.service.history import History
from sparta.service.kept import Kept
from sparta.service.progress import Progress
from sparta.service.report import Scores, result_table, show
from sparta.service.resume import (
    changes,
    check_resumable,
    check_there,
    circumstances,
    fits,
    manifest_of,
    restore,
    state_of,
)
from sparta.service.run import RunDirectory
from sparta.service.scoring import evaluate
from sparta.service.skips import Skips, once
from sparta.service.step import nothing
from sparta.service.stop import Stop, Stopped, mark, unmark
from sparta.service.trainer import Outcome, Trainer
from sparta.service.warm import start_from
from sparta.service.world import World
from sparta.sharding.shard import Sharded


def train(
    job: Job,
    run: RunDirectory,
    world: World,
    *,
    resume: bool = False,
    source: str | None = None,
    weights_only: bool = False,
    profile: tuple[int, int] | None = None,
) -> dict[str, Any] | None:
    """Run the job in `run`; the content of result.json, on all ranks.

    Everything that can be refused is refused before the directory is claimed. None when it was told to stop: then
    the directory says after which step, and a later call with `resume` goes on.

    Args:
        resume: go on from the newest checkpoint in `run`, if there is one.
        source: a run, checkpoint or export whose weights and learning state a new run begins with.
        weights_only: of `source`, the weights only.
        profile: first and last step whose time is looked into.
    """
    with Stop().listening() as stop, closing(run.lock):  # from here on SIGTERM ends the run in time
        return _train(job, run, world, stop, resume, source, weights_only, profile)


def _train(
    job: Job,
    run: RunDirectory,
    world: World,
    stop: Stop,
    resume: bool,
    source: str | None,
    weights_only: bool,
    profile: tuple[int, int] | None,
) -> dict[str, Any] | None:
    if resume:
        world.once(run.lock.take)
    resumes = world.once(lambda: resume and run.begun(job))
    if not resumes:
        world.once(run.check_free)
    schema = build.schema(job)
    check_forward(job, schema)
    if resumes:
        world.once(lambda: check_resumable(run, job, schema))
    model = build.model(job, schema)
    plan = build.plan(job, model, ranks=world.ranks, local_ranks=world.local_ranks, device=world.device.type)
    feed = build.feed(job, schema, run, world)
    splits = [split for split in ("valid", "test") if split in schema.splits]
    if job.train.test == "unread" and "test" in splits:
        splits.remove("test")
    for split in splits:  # damage there must not come to light after the training
        build.scoring_loader(job.data.path, schema, split, job.data.batch_size, world)
    sharded = build.sharded(job, model, plan, world)
    step = build.step(job, sharded, world)

    origin: dict[str, Any] | None = {"source": source, "weights_only": weights_only} if source else None
    if resumes:
        origin = world.once(run.begun_from) or origin

    def take_over() -> None:
        if origin:
            start_from(origin["source"], schema, sharded, step, world, weights_only=origin["weights_only"])

    elsewhere = Storage(job.checkpoint.path) if job.checkpoint.path else None
    if not resumes:
        take_over()
        if elsewhere:
            world.once(lambda: check_free(elsewhere))
        world.once(lambda: run.claim(job, schema, origin))
    if elsewhere:
        world.once(lambda: own(elsewhere, run.path))
    heartbeat, progress = build_run.heartbeat(job, run, world), Progress(feed.total_steps, rank=world.rank)
    telemetry = build_run.telemetry(job, schema, run, world, feed, progress.note)
    checkpoints = build_run.checkpoints(job, run, heartbeat, telemetry)
    checkpoints.prepare()  # from here on a rank that dies is noticed by the others at once
    with build_run.serving(job, run, world, heartbeat, telemetry) as serving:
        with heartbeat, progress:
            tell_once, kept = once(progress.note), Kept()

            def scores_of(split: str) -> Scores:
                keep = kept.add if split == "test" and job.train.test == "kept" else None
                return score(job, schema, sharded, world, split, while_scoring, tell_once, keep)

            def while_scoring() -> None:
                heartbeat.beat("evaluate")
                stop.or_raise()

            def save(training: Mapping[str, Any]) -> None:
                checkpoints.save(state_of(sharded, step, world), manifest_of(job, schema, training, world))
                heartbeat.beat("save")

            found = checkpoints.newest() if resumes else None
            if resumes and not found:
                world.once(lambda: check_there(run, job, checkpoints))
            start = found[1].step if found else 0
            settled = not found or found[1].training["settled"]
            unwritten = found[1].training["unwritten"] if found else ""
            history = (
                History(run.history, until=start, evaluated=settled, unwritten=unwritten)
                if world.first
                else None
            )
            skips = Skips(job.tolerate.bad_rows, progress.note)
            trainer = Trainer(
                sharded=sharded,
                step=step,
                feed=feed,
                evaluate=(lambda: scores_of("valid")) if "valid" in schema.splits else None,
                schedule=build.schedule(job, feed.total_steps),
                plateau=build.plateau(job),
                watch=build.watch(job),
                stop_early=job.train.early_stop is not None,
                save=save,
                history=history,
                progress=progress,
                world=world,
                log_every=job.train.log_every,
                evaluate_every=job.train.evaluate_every,
                save_every=job.checkpoint.every,
                stop=stop,
                beat=heartbeat.beat,
                bad_steps=job.tolerate.bad_steps,
                skips=skips,
                telemetry=telemetry,
            )
            if resumes and not found:
                take_over()
            if found:
                restore(*found, checkpoints, sharded, step, trainer, world)
                if differs := changes(found[1], job, world):
                    progress.note(f"{differs}: the losses are equal up to rounding, not to the bit")
            if resumes:
                world.once(lambda: run.take_up(job))
            if world.first:
                plan.save(run.plan)
                unmark(run.path)
                run.diverged.unlink(missing_ok=True)
            if origin and not found:
                save(trainer.state_dict())  # a resumed run has what was taken over from here
            progress.begin(start)
            telemetry.begin(
                start,
                feed.total_steps,
                world.once(run.count_start),
                plan.counts(),
                found[1] if found else None,
            )
            heartbeat.begin(start)
            try:
                stop.or_raise()
                with build_run.profiled(profile, start, run, world, telemetry):
                    outcome = trainer.run()
                checkpoints.finish()
                world.once(history.close if history else nothing)
                weights: Literal["best", "last"] = "best" if job.train.early_stop else "last"
                if weights == "best" and outcome.best_step is not None:
                    try:
                        best = world.once(lambda: of_step(checkpoints.storage, outcome.best_step or 0))
                        sharded.settle()  # what rows owe now is not of those weights
                        checkpoints.load(sharded.state_dict(), best, weights_only=True)
                    except DataError as error:  # its save failed, or it was damaged since
                        progress.note(f"{error}: the last weights are tested instead")
                        weights = "last"
                scores = {split: scores_of(split) for split in splits}
                for split, metrics in scores.items():
                    telemetry.evaluated(split, metrics)
            except Stopped:
                left = stop.seconds_left(job.checkpoint.grace_seconds)
                if world.first:  # it may be over before a save under way has ended
                    with suppress(OSError):
                        mark(run.path, trainer.steps, checkpoints.saved)
                if fits(checkpoints, state_of(sharded, step, world), left):
                    save(trainer.state_dict())
                checkpoints.wait()
                if world.first:
                    with suppress(OSError):  # a full disk; the checkpoints may be on another
                        mark(run.path, trainer.steps, checkpoints.saved)
                return None
            except SpartaError as error:
                if isinstance(error, DivergedError) and world.first:
                    with suppress(OSError):
                        run.diverged.write_text(f"{error}\n")
                with suppress(Exception):  # what was done before the mistake is not to be lost
                    checkpoints.wait()
                raise
        result = summary(job, outcome, weights, scores, checkpoints.log, world)
        if job.tolerate.bad_rows:
            result["skipped"] = skips.summary()
        frequent = step.most_frequent()
        if frequent:
            result["most_frequent"] = {
                name: {"id": row, "occurrences": count} for name, (count, row) in frequent.items()
            }
        kept.save(run.scores, world)
        if world.first:
            run.write_result(result)
            from sparta.service.curves import draw  # matplotlib takes half a second to load

            draw(run.history, run.curves)
            show(result_table(result, schema), run.path)
        serving.linger()
    return result


def score(
    job: Job,
    schema: Schema,
    sharded: Sharded,
    world: World,
    split: str,
    meanwhile: Callable[[], None] = nothing,
    note: Callable[[str], None] | None = None,
    keep: Callable[[Batch, Tensor], None] | None = None,
) -> Scores:
    """Metrics of one split.

    Args:
        meanwhile: called on all ranks between two batches.
        note: told of bad rows, which are then left out as far as the job tolerates them; without it they are refused.
        keep: called with every batch and its logits.
    """
    down, limit = job.data.negatives, job.tolerate.bad_rows if note else 0
    loader = build.scoring_loader(
        job.data.path, schema, split, job.data.batch_size, world, skip_bad_rows=limit > 0
    )
    return evaluate(
        sharded,
        loader,
        world,
        schema,
        group=job.train.gauc_by,
        negatives_kept=1.0 if down is None or split in down.splits else down.kept,
        meanwhile=meanwhile,
        skips=Skips(limit, note) if note else None,
        keep=keep,
    )


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
        forced=run.plan if same and not is_export(run.path) else None,
    )
    sharded = build.sharded(scoring, model, plan, world)
    if is_export(run.path):
        load_export(run.path, sharded.state_dict())
        return schema, sharded
    checkpoints = build_run.checkpoints(job, run)
    name = world.once(lambda: find(checkpoints.storage, which or run.tested(job)))
    checkpoints.load(sharded.state_dict(), name, weights_only=True)
    return schema, sharded


def summary(
    job: Job, outcome: Outcome, weights: str, scores: dict[str, Scores], saving: Log, world: World
) -> dict[str, Any]:
    """The content of result.json."""
    return {
        "name": job.name,
        "steps": outcome.steps,
        "examples": outcome.examples,
        "seconds": round(outcome.seconds, 3),
        "examples_per_second": round(outcome.examples / max(outcome.seconds, 1e-9), 1),
        "best_step": outcome.best_step,
        "stopped_early": outcome.stopped_early,
        "weights": weights,
        "eval": scores,
        "refused_steps": outcome.refused,
        "checkpoints": {
            "saved": saving.saves,
            "failed": saving.failures,
            "bytes": saving.bytes,
            "seconds": round(saving.seconds or 0.0, 3),
            "stall_seconds": round(saving.stall_seconds, 3),
        },
        **circumstances(job, world),
    }
