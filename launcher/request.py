"""The little that the launcher reads from a command line; the service is the authority on the rest."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sparta.models.errors import ConfigError

NEW_RUN = "train"
"""The verb that starts a run; the other multi-rank verbs name one."""


@dataclass(frozen=True)
class Request:
    """What decides where a job runs and on how many ranks."""

    target: Path
    """The job file of a new run, else the run directory."""
    run_dir: Path | None
    ranks: int | None
    overrides: tuple[str, ...]
    verbose: bool
    resume: bool = False


def wants_help(arguments: Sequence[str]) -> bool:
    """Whether the user asks what the verb takes."""
    return "-h" in arguments or "--help" in arguments


def peek(arguments: Sequence[str]) -> Request | None:
    """Read a multi-rank verb's arguments; None without a target, of which the service will complain.

    Raises:
        ConfigError: `--ranks` is no positive number, or an option lacks its value.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("target", nargs="?", type=Path)
    parser.add_argument("--run-dir", type=Path)
    parser.add_argument("--ranks")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("-v", "--verbose", action="store_true")
    parser.add_argument("--resume", action="store_true")
    # Unused here, but their values must not be taken for the target.
    for option in ("--split", "--out", "--checkpoint", "--from", "--profile"):
        parser.add_argument(option)
    try:
        known, _ = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise ConfigError(f"{error.argument_name}: {error.message}") from error
    if known.target is None:
        return None
    ranks = _ranks(known.ranks)
    return Request(known.target, known.run_dir, ranks, tuple(known.set), known.verbose, known.resume)


def _ranks(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"--ranks {text}: not a number of processes; give 1 or more")
    return int(text)
