"""What the verbs of `python -m sparta.service` take; the launcher reads it too. No torch here."""

import argparse
import math
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from sparta.models.errors import ConfigError

CHECKPOINT = ("list", "verify", "export")
"""What `sparta checkpoint` does."""
STAGES = ("prepare", "tune", "final", "table")
"""Of `sparta compare`."""


class Parser(argparse.ArgumentParser):
    """Complains in one line, like everything else here, and takes no word for another that begins with it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

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
    train.add_argument(
        "--profile", metavar="FIRST-LAST", help="write where the time of these steps goes, such as 20-40"
    )

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
    compare.add_argument("study", type=Path, help="STUDY.yaml")
    compare.add_argument(
        "--work", type=Path, metavar="DIR", help="the study's folder; default: studies/<name>"
    )
    for what in ("data", "models", "optimizers"):
        compare.add_argument(f"--{what}", metavar="NAMES", help="some of them, with commas; default: all")
    compare.add_argument("--stage", choices=STAGES, help="only this; default: one after the other")
    compare.add_argument("--slots", type=_positive, metavar="N", help="cells at a time; default: one a core")
    compare.add_argument(
        "--submit",
        metavar="SCHEDULER",
        help="each cell as a job of `sparta submit`, whose options follow `--`",
    )
    compare.add_argument(
        "--dry-run", action="store_true", help="list the cells, how they stand and their commands, and stop"
    )

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
