"""The `sparta` command: which verb, and how it is started; most are the service's.

Single-process verbs become `python -m sparta.service VERB ARGS`. Multi-rank verbs run the same
command on every rank, through TorchX and torchrun (launcher/local.py).
"""

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from sparta.launcher.request import NEW_RUN, Request, peek, wants_help
from sparta.launcher.run_directory import JOB, RUNS, discard_unless_begun, given, logs_of, next_free
from sparta.launcher.submit import SERVICE
from sparta.models.errors import ConfigError, SpartaError

SINGLE = {
    "synth": "make synthetic data whose best attainable AUC is known",
    "prepare": "turn raw CSV, TSV or Parquet files into a dataset folder",
    "check": "validate a job file and its dataset against each other",
    "plan": "show where each table would be placed, and the bytes it takes",
    "checkpoint": "list, verify or export a run's checkpoints",
}
MULTI = {
    "train": "train a job on its ranks, into a run directory",
    "evaluate": "compute a trained run's metrics on a split",
    "predict": "score the rows of a raw file with a trained run",
}
SUBMIT = "submit"
MANAGE = {
    "status": "show how a submitted job is",
    "logs": "show or follow what its ranks print",
    "cancel": "tell it to stop, and wait until it has",
    "list": "list submitted jobs, newest first",
}
DEMO = "demo"
COMPARE = "compare"
WATCH = "watch"
VERBS = {
    **SINGLE,
    **MULTI,
    SUBMIT: "train a job in the background, or on a cluster",
    **MANAGE,
    COMPARE: "run a study of data sets, models and optimizers, to a table",
    WATCH: "start a Prometheus on this machine that scrapes local runs",
    DEMO: "a first look: synth, prepare and train in three minutes",
}


def main(argv: Sequence[str] | None = None, *, service: str = SERVICE) -> int:
    """Run one `sparta` command line; the exit code. `service` is the module that owns the verbs."""
    verb, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        return _dispatch(verb, arguments, service)
    except SpartaError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has left; Python must not complain of that when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141


def _dispatch(verb: str, arguments: list[str], service: str) -> int:
    if verb in ("-h", "--help"):
        print(_help())
        return 0
    if verb == "--version":
        from importlib.metadata import version

        print(f"sparta {version('sparta')}")
        return 0
    if verb not in VERBS:
        nearest = get_close_matches(verb, VERBS, 1)
        hint = f"did you mean {nearest[0]}?" if nearest else "see `sparta --help`"
        raise ConfigError(f"{verb}: no verb of sparta; {hint}")
    if verb == DEMO:
        from sparta.launcher.demo import demo

        return demo(arguments)
    if verb == SUBMIT:
        from sparta.launcher.submit import submit

        return submit(arguments, service=service)
    if verb in MANAGE:
        from sparta.launcher.manage import manage

        return manage(verb, arguments)
    if verb == COMPARE:
        from sparta.launcher.compare import compare

        return compare(arguments, service=service)
    if verb == WATCH:
        from sparta.launcher.watch import watch

        return watch(arguments)
    request = None if verb in SINGLE or wants_help(arguments) else peek(arguments)
    if request is None:
        return become(service, verb, arguments)
    return _start(verb, arguments, request, service)


def _help() -> str:
    verbs = "\n".join(f"  {verb:<12}{line}" for verb, line in VERBS.items())
    return (
        "usage: sparta VERB ...\n\n"
        "Train recommenders whose embedding tables do not fit one device.\n\n"
        f"{verbs}\n\n`sparta VERB --help` tells what a verb takes; `sparta --version` the version."
    )


def become(service: str, verb: str, arguments: Sequence[str]) -> NoReturn:
    """Replace this process by the service: same terminal, same signals, its exit code."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", service, verb, *arguments])


def _directory(request: Request, name: str) -> tuple[Path, bool]:
    """Where a training of that name goes, and whether the directory is new."""
    if request.run_dir is None and not request.resume:
        return next_free(name), True
    directory = request.run_dir or RUNS / name
    return directory, given(directory, resume=request.resume)


def _start(verb: str, arguments: Sequence[str], request: Request, service: str) -> int:
    """Run a verb on the ranks of its job."""
    from sparta.launcher.local import LocalJob, check_memory, run
    from sparta.service.config import load_job

    if verb == NEW_RUN:
        job = load_job(request.target, request.overrides)
        check_memory(request.ranks or job.train.ranks)
        directory, new = _directory(request, job.name)
        if request.run_dir is None:
            arguments = [*arguments, "--run-dir", str(directory)]
    else:
        directory, new = request.target, False
        if not (directory / JOB).is_file():
            raise ConfigError(
                f"{directory}: holds no {JOB}, so it is no run of `sparta train` and no export of one"
            )
        job = load_job(directory / JOB)
    outcome = run(
        LocalJob(
            name=verb,
            ranks=request.ranks or job.train.ranks,
            module=service,
            arguments=(verb, *arguments),
            logs=logs_of(directory, verb),
            verbose=request.verbose,
            restarts=job.tolerate.restarts if verb == NEW_RUN else 0,
        )
    )
    if outcome.stopped:
        go_on = ["sparta", verb, *arguments, *([] if request.resume else ["--resume"])]
        print(outcome.stopped.line(go_on), file=sys.stderr)
    if new and outcome.verdict and outcome.verdict.refused and not request.verbose:
        discard_unless_begun(directory)
    return outcome.code
