"""What `sparta compare` takes, for the service and the launcher alike. No torch here."""

import argparse
import os
from collections.abc import Iterable
from pathlib import Path

from sparta.models.errors import ConfigError
from sparta.service.compare.cells import Folder
from sparta.service.compare.run import STAGES, Part
from sparta.service.compare.study import load_study

STUDIES = Path("studies")


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """Define them."""
    verb.add_argument("study", type=Path, help="STUDY.yaml")
    verb.add_argument("--work", type=Path, metavar="DIR", help="the study's folder; default: studies/<name>")
    for what in ("data", "models", "optimizers"):
        verb.add_argument(f"--{what}", metavar="NAMES", help="some of them, with commas; default: all")
    verb.add_argument("--stage", choices=STAGES, help="only this; default: one after the other")
    verb.add_argument(
        "--slots",
        type=_slots,
        default=cores(),
        metavar="N",
        help="cells at a time; default: one a core (%(default)s)",
    )
    verb.add_argument(
        "--submit", metavar="SCHEDULER", help="each cell as a job of `sparta submit`; its options follow `--`"
    )
    verb.add_argument(
        "--dry-run", action="store_true", help="list the cells, how they stand and their commands, and stop"
    )


def read(arguments: argparse.Namespace) -> tuple[Folder, Part]:
    """The study's folder, and the part of the study that is asked for.

    Raises:
        ConfigError: a bad study, or a name that it does not have.
    """
    study = load_study(arguments.study)
    stages = (arguments.stage,) if arguments.stage else STAGES
    return Folder(arguments.work or STUDIES / study.name, study), Part(
        _names(arguments.data, study.data, "data"),
        _names(arguments.models, study.models, "models"),
        _names(arguments.optimizers, study.optimizers, "optimizers"),
        stages,
    )


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _names(text: str | None, known: Iterable[str], what: str) -> tuple[str, ...]:
    """The names of a list with commas, in the study's order; all of them if it is not given."""
    wanted = list(known) if text is None else text.split(",")
    if unknown := [name for name in wanted if name not in known]:
        raise ConfigError(f"--{what} {', '.join(unknown)}: the study has {', '.join(known)}")
    return tuple(name for name in known if name in wanted)


def _slots(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)
