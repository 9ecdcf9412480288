"""What of a study the command line asks for. No torch here."""

import argparse
import os
import re
from collections.abc import Iterable
from pathlib import Path

from sparta.models.errors import ConfigError
from sparta.service.arguments import STAGES
from sparta.service.compare.cells import Folder
from sparta.service.compare.run import Part
from sparta.service.compare.study import load_study

STUDIES = Path("studies")


def read(arguments: argparse.Namespace) -> tuple[Folder, Part]:
    """The study's folder, and the part of the study that is asked for.

    Raises:
        ConfigError: a bad study, a name that it does not have, or a URL to work in.
    """
    study = load_study(arguments.study)
    if arguments.work and re.match(r"[a-z0-9]+:/", str(arguments.work)):
        raise ConfigError(f"--work {arguments.work}: a study works in a folder of this machine; give one")
    part = Part(
        _names(arguments.data, study.data, "data"),
        _names(arguments.models, study.models, "models"),
        _names(arguments.optimizers, study.optimizers, "optimizers"),
        (arguments.stage,) if arguments.stage else STAGES,
    )
    return Folder(arguments.work or STUDIES / study.name, study), part


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _names(text: str | None, known: Iterable[str], what: str) -> tuple[str, ...]:
    """The names of a list with commas, in the study's order; all of them if it is not given."""
    wanted = list(known) if text is None else text.split(",")
    if unknown := [name for name in wanted if name not in known]:
        raise ConfigError(f"--{what} {', '.join(unknown)}: the study has {', '.join(known)}")
    return tuple(name for name in known if name in wanted)
