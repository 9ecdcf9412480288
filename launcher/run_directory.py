"""Where a new run goes: `runs/<name>`, or `runs/<name>-2`, `-3`, ... when that is taken.

A default directory is taken once it exists at all: making it is atomic, so two trainings started
together get two directories. One that the user named is refused only if it holds a run, and not even then
with `--resume`, which by default goes on with `runs/<name>` itself.
"""

import shutil
from itertools import count
from pathlib import Path

from sparta.models.errors import ConfigError
from sparta.service.alone import LOCK, check_alone

RUNS = Path("runs")
JOB = "job.yaml"
LOGS = "logs"


def next_free(name: str, root: Path = RUNS) -> Path:
    """Make the first free directory for a run of that name.

    Raises:
        ConfigError: it cannot be made.
    """
    for number in count(1):
        path = root / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            if path.exists():
                continue
            raise _unwritable(path, "a file is in the way") from None
        except OSError as error:
            raise _unwritable(path, error.strerror) from error
        return path
    raise AssertionError("count() never ends")


def first_free(name: str, root: Path = RUNS) -> Path:
    """What `next_free` would make now."""
    paths = (root / (name if number == 1 else f"{name}-{number}") for number in count(1))
    return next(path for path in paths if not path.exists())


def given(path: Path, *, resume: bool = False) -> bool:
    """Make the directory that the user named; whether it is new.

    Raises:
        ConfigError: it holds a run that is not to be resumed or that is at work, or cannot be made.
    """
    check_alone(path)
    if not resume and (path / JOB).exists():
        raise ConfigError(
            f"{path}: already holds a run; give another --run-dir, or --resume to go on with it"
        )
    try:
        path.mkdir(parents=True)
    except OSError as error:
        if path.is_dir():
            return False
        raise _unwritable(path, error.strerror) from error
    return True


def logs_of(run: Path, verb: str) -> Path:
    """Make the folder for the logs of one verb, so that evaluating a run keeps its training's logs.

    Raises:
        ConfigError: the run directory is not writable.
    """
    path = run / LOGS / verb
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = f"cannot be written ({error.strerror})"
        raise ConfigError(
            f"{run}: {reason}; the logs go there, so make it writable or take another"
        ) from error
    return path


def run_of(logs: Path) -> Path:
    """The run directory whose folder of logs that is."""
    return logs.parents[1]


def discard_unless_begun(run: Path) -> None:
    """Remove the directory of a run that was refused before it wrote anything but logs."""
    if {entry.name for entry in run.iterdir()} <= {LOGS, LOCK}:
        shutil.rmtree(run)


def _unwritable(path: Path, reason: str | None) -> ConfigError:
    return ConfigError(f"{path}: cannot be written ({reason}); give a writable --run-dir")
