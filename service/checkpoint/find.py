"""Which checkpoint is meant, and whose they are. No torch here."""

import uuid
from pathlib import Path
from typing import Literal

from sparta.models.errors import ConfigError, DataError
from sparta.service.checkpoint import manifest as disk
from sparta.service.checkpoint.manifest import OWNER
from sparta.service.checkpoint.storage import Storage

Which = Literal["best", "last"]

INDEX = "model.safetensors.index.json"
"""What an exported folder has."""


def is_export(folder: Path) -> bool:
    """Whether a folder was made by `sparta checkpoint export`."""
    return (folder / INDEX).is_file()


def find(storage: Storage, which: Which) -> str:
    """The best checkpoint (the newest, when there was no evaluation), or the newest.

    Raises:
        DataError: there is none.
    """
    complete = disk.committed(storage)
    if not complete:
        raise DataError(f"{storage.root}: holds no complete checkpoint; train first with `sparta train`")
    newest = complete[-1]
    if which == "last" or disk.format_of(storage, newest) == 1:
        return newest
    best = disk.read_manifest(storage, newest).training.get("best_step")
    return newest if best is None else of_step(storage, best)


def of_step(storage: Storage, step: int) -> str:
    """The checkpoint after a step.

    Raises:
        DataError: it is gone.
    """
    found = [name for name in disk.committed(storage) if disk.place_of(name)[0] == step]
    if not found:
        raise DataError(f"{storage.root}: the checkpoint of step {step} is gone; use --checkpoint last")
    return found[-1]


def check_free(storage: Storage) -> None:
    """Refuse a folder for a new run's checkpoints that holds another's: each would take the other's for its own.

    Raises:
        ConfigError: in one line, with the way out.
    """
    if storage.exists(OWNER) or disk.steps(storage):
        raise ConfigError(
            f"{storage.root}: holds checkpoints of another run; give this one a checkpoint.path of its own, or go on "
            "with that one with --resume and its --run-dir"
        )


def own(storage: Storage, run: Path) -> None:
    """Make a folder the run's, or see that it is.

    Raises:
        ConfigError: it is another's.
    """
    mine = run / OWNER
    theirs = storage.read(OWNER).decode() if storage.exists(OWNER) else None
    if theirs is not None and (not mine.exists() or mine.read_text() != theirs):
        raise ConfigError(
            f"{storage.root}: holds checkpoints of another run than {run}; see that checkpoint.path is the one it "
            "was started with"
        )
    if theirs is None:  # a new one, or one that was killed before it got here
        mine.write_text(f"{uuid.uuid4()}\n")
        storage.make()
        storage.write(OWNER, mine.read_text())
