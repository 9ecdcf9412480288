"""`python -m sparta.service VERB`: what `sparta` starts, on every rank.

A mistake of the user's ends in one line `error: ...` on standard error and the error's exit code; `-v`
shows the traceback and the libraries' own messages.
"""

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from sparta.models.errors import ConfigError, SpartaError
from sparta.service.arguments import parser


def synth(arguments: argparse.Namespace) -> None:
    from sparta.service.data.synth import synth

    synth(arguments.out, rows=arguments.rows, seed=arguments.seed)


def prepare(arguments: argparse.Namespace) -> None:
    from sparta.service.data.prepare import prepare
    from sparta.service.data.spec import load_spec

    spec = load_spec(arguments.spec, arguments.set)
    schema = prepare(spec, arguments.out, extend=arguments.extend, overwrite=arguments.overwrite)
    rows = ", ".join(f"{split} {count:,}" for split, count in schema.splits.items())
    tables = sum(feature.rows for feature in schema.sparse)
    print(
        f"{arguments.out}: {rows} rows; {len(schema.dense)} dense columns, "
        f"{len(schema.sparse)} tables of {tables:,} rows in all"
    )


def check(arguments: argparse.Namespace) -> None:
    from sparta.service.check import check
    from sparta.service.config import load_job

    for line in check(load_job(arguments.job, arguments.set)):
        print(line)


def plan(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from sparta.service import build
    from sparta.service.config import load_job
    from sparta.sharding.plan import format_plan

    job = load_job(arguments.job, arguments.set)
    ranks = arguments.ranks or job.train.ranks
    made = build.plan(
        job,
        build.model(job, build.schema(job)),
        ranks=ranks,
        local_ranks=arguments.local_ranks or ranks,
        device=arguments.device,
        memory_gb=arguments.memory_gb,
    )
    if arguments.save:
        made.save(arguments.save)
    # Byte counts cut short would be worse than lines that wrap.
    Console(width=max(Console().width, 110)).print(format_plan(made))


def train(arguments: argparse.Namespace) -> None:
    from sparta.service.config import load_job
    from sparta.service.profile import steps_of
    from sparta.service.run import RunDirectory
    from sparta.service.train import train
    from sparta.service.world import world

    job = load_job(arguments.job, arguments.set)
    profile = steps_of(arguments.profile) if arguments.profile else None
    with world(job.train.device) as here:
        if arguments.ranks not in (None, here.ranks):
            raise ConfigError(
                f"--ranks {arguments.ranks}, but {here.ranks} are running; start them with `sparta train`"
            )
        # The resolved job says on how many ranks it really ran.
        job = job.model_copy(update={"train": job.train.model_copy(update={"ranks": here.ranks})})
        # torchrun starts all ranks again when one died, with the arguments of the first time.
        restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
        run = RunDirectory(arguments.run_dir or Path("runs") / job.name)
        if arguments.weights_only and not arguments.source:
            raise ConfigError("--weights-only says what to take of --from RUN, which is missing")
        train(
            job,
            run,
            here,
            resume=arguments.resume or restarted,
            source=arguments.source,
            weights_only=arguments.weights_only,
            profile=profile,
        )


def evaluate(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from sparta.service.report import scores_table
    from sparta.service.run import RunDirectory
    from sparta.service.scoring import checked_split
    from sparta.service.train import score, trained
    from sparta.service.world import world

    run = RunDirectory(arguments.run)
    job = run.read_job(arguments.set)
    with world("auto") as here:
        schema, sharded = trained(run, job, here, arguments.checkpoint)
        checked_split(schema, arguments.split, job.data.path)
        scores = score(job, schema, sharded, here, arguments.split)
        if here.first and arguments.json:
            print(json.dumps({arguments.split: scores}))
        elif here.first:
            Console().print(scores_table({arguments.split: scores}, schema))


def predict(arguments: argparse.Namespace) -> None:
    from sparta.service.predict import predict
    from sparta.service.run import RunDirectory
    from sparta.service.train import trained
    from sparta.service.world import world

    run = RunDirectory(arguments.run)
    job = run.read_job(arguments.set)
    with world("auto") as here:
        schema, sharded = trained(run, job, here, arguments.checkpoint)
        rows = predict(job, schema, sharded, here, arguments.file, arguments.out)
        if here.first:
            print(f"{rows} rows scored: {arguments.out}")


def checkpoint(arguments: argparse.Namespace) -> None:
    from sparta.service.checkpoint.verb import checkpoint

    checkpoint(arguments)


def compare(arguments: argparse.Namespace) -> None:
    from sparta.service.compare.verb import compare

    compare(arguments)


VERBS = {
    "synth": synth,
    "prepare": prepare,
    "check": check,
    "plan": plan,
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "checkpoint": checkpoint,
    "compare": compare,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the process's exit code."""
    verbose = "-v" in (argv or sys.argv) or "--verbose" in (argv or sys.argv)
    try:
        arguments = parser().parse_args(argv)
        if arguments.verb not in ("synth", "prepare"):
            from sparta.sharding.quiet import silence

            if not verbose:
                silence()
        VERBS[arguments.verb](arguments)
    except SpartaError as error:
        if verbose:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except BrokenPipeError:
        # Whoever read our output has left; Python must not complain of that when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except OSError as error:
        # A disk that is full or gone while we write; what is known beforehand has a better line of its own.
        if verbose or error.filename is None:
            traceback.print_exc()
        what = f"{error.filename or 'system'}: {error.strerror or error}"
        print(f"error: {what}; mend that and run it again", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    code = main()
    if code and "RANK" in os.environ:
        # At once: while this rank takes its leave, its peers fail too, and torchrun would see them first.
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
