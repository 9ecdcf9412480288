"""`python -m sparta.service VERB`: what `sparta` starts, on every rank. The arguments are defined here.

A mistake of the user's ends in one line `error: ...` on standard error and the error's exit code; `-v`
shows the traceback and the libraries' own messages.
"""

import argparse
import json
import math
import os
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from sparta.models.errors import ConfigError, SpartaError
from sparta.service.compare.arguments import add_arguments

CHECKPOINT = ("list", "verify", "export")
"""What `sparta checkpoint` does."""


class Parser(argparse.ArgumentParser):
    """Complains in one line, like everything else here."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see `{self.prog} --help`")


def parser() -> Parser:
    """All verbs with their arguments."""
    top = Parser(prog="sparta", description="Train recommenders on sharded embedding tables.")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    synth = verbs.add_parser("synth", help="make Criteo-shaped data with known best metrics")
    synth.add_argument("--out", type=Path, required=True, help="folder to make")
    synth.add_argument("--rows", type=_positive, default=400_000, help="rows of all splits together")
    synth.add_argument("--seed", type=int, default=1)

    prepare = verbs.add_parser("prepare", help="raw files to a dataset folder")
    prepare.add_argument("spec", help="SPEC.yaml, or the name of a built-in spec: criteo, generic")
    prepare.add_argument("--out", type=Path, required=True, help="dataset folder to make")
    prepare.add_argument(
        "--extend",
        type=Path,
        metavar="DATASET",
        help="keep this dataset's ids and statistics; new values get the ids behind",
    )
    prepare.add_argument("--overwrite", action="store_true", help="replace a dataset that is there")
    _set(prepare)

    check = verbs.add_parser("check", help="validate a job and its dataset against each other")
    _job(check)

    plan = verbs.add_parser("plan", help="show where the tables would go and what they take; needs no GPU")
    _job(plan)
    plan.add_argument("--ranks", type=_positive, help="default: train.ranks of the job")
    plan.add_argument("--local-ranks", type=_positive, help="ranks on one machine; default: all")
    plan.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    plan.add_argument("--memory-gb", type=_size, help="memory of one rank for tables and buffers")
    plan.add_argument("--save", type=Path, help="write the plan here, to force it with sharding.plan")

    train = verbs.add_parser("train", help="train and test a model")
    _job(train)
    train.add_argument("--run-dir", type=Path, help="default: runs/<name>")
    train.add_argument(
        "--resume", action="store_true", help="go on from the newest checkpoint of the run directory, if any"
    )

    train.add_argument(
        "--from",
        dest="source",
        metavar="RUN",
        help="begin with what a run, one of its checkpoints or an export has learned",
    )
    train.add_argument("--weights-only", action="store_true", help="of --from: not the optimizers' state")

    evaluate = verbs.add_parser("evaluate", help="metrics of a run's model on a split")
    evaluate.add_argument("run", type=Path, help="run directory")
    evaluate.add_argument("--split", default="test")
    evaluate.add_argument("--checkpoint", choices=("best", "last"), help="default: what result.json is about")
    _set(evaluate)
    evaluate.add_argument("--json", action="store_true", help="print JSON instead of a table")

    predict = verbs.add_parser("predict", help="probabilities for a file of raw values")
    predict.add_argument("run", type=Path, help="run directory")
    predict.add_argument("file", type=Path, help="raw Parquet or CSV file with the columns of the spec")
    predict.add_argument("--out", type=Path, required=True, help="Parquet file to make")
    predict.add_argument("--checkpoint", choices=("best", "last"), help="default: what result.json is about")
    _set(predict)

    checkpoint = verbs.add_parser("checkpoint", help="list, verify or export a run's checkpoints")
    checkpoint.add_argument("what", type=_what, help=", ".join(CHECKPOINT))
    checkpoint.add_argument("run", type=Path, help="run directory")
    checkpoint.add_argument("--out", type=Path, help="export: folder of safetensors files to make")
    checkpoint.add_argument(
        "--checkpoint", choices=("best", "last"), help="export: default: what result.json is about"
    )
    checkpoint.add_argument("--json", action="store_true", help="list, verify: print JSON instead of a table")

    compare = verbs.add_parser("compare", help="run a study: data x models x optimizers x seeds, to a table")
    add_arguments(compare)

    for name, verb in verbs.choices.items():
        verb.prog = f"sparta {name}"
        verb.add_argument("-v", "--verbose", action="store_true", help="libraries' messages and tracebacks")
        if name in ("train", "evaluate", "predict"):
            verb.add_argument(
                "--ranks", type=_positive, help="local processes; default: train.ranks of the job"
            )
    return top


def _job(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("job", type=Path, help="JOB.yaml")
    _set(verb)


def _set(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="edit the file before it is checked"
    )


def _what(text: str) -> str:
    if text not in CHECKPOINT:
        near = get_close_matches(text, CHECKPOINT, 1, 0.5)
        hint = f", the nearest is {near[0]}" if near else ""
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(CHECKPOINT)}{hint}")
    return text


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _size(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return number


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
    from sparta.service.run import RunDirectory
    from sparta.service.train import train
    from sparta.service.world import world

    job = load_job(arguments.job, arguments.set)
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
