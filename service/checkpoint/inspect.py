"""What `sparta checkpoint list` and `verify` say of a run's checkpoints. No torch here."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from sparta.models.errors import DataError
from sparta.service.checkpoint import manifest as disk
from sparta.service.checkpoint.storage import Storage


@dataclass(frozen=True)
class Entry:
    """One folder among the checkpoints."""

    name: str
    state: str
    """complete, not complete, damaged, set aside."""
    step: int | None = None
    bytes: int = 0
    seconds: float = 0.0
    """Saving took, from the step it was taken in to the commit."""
    at: float = 0.0
    """When it was taken, in seconds since 1970."""
    ranks: int = 0
    best: bool = False
    """The newest complete checkpoint calls it the best."""
    problem: str | None = None


def entries(storage: Storage, *, every_byte: bool = False) -> list[Entry]:
    """All of them, oldest first.

    Args:
        every_byte: read the files and compare their checksums.
    """
    found = [*_complete(storage, every_byte)]
    names = {entry.name for entry in found}
    found += [Entry(name, "not complete") for name in disk.steps(storage) if name not in names]
    found += [Entry(name, "set aside") for name in storage.names() if name.startswith(disk.DAMAGED)]
    return sorted(found, key=lambda entry: entry.name.removeprefix(disk.DAMAGED))


def _complete(storage: Storage, every_byte: bool) -> Iterator[Entry]:
    names = disk.committed(storage)
    best = None
    for name in reversed(names):
        try:
            best = disk.read_manifest(storage, name).training.get("best_step")
            break
        except DataError:
            continue
    for name in names:
        try:
            manifest = disk.read_manifest(storage, name)
        except DataError as error:
            yield Entry(name, "damaged", problem=str(error))
            continue
        problem = disk.damage(storage, name, manifest) if every_byte else None
        yield Entry(
            name,
            "damaged" if problem else "complete",
            manifest.step,
            manifest.bytes,
            manifest.about.get("seconds", 0.0),
            manifest.about.get("at", 0.0),
            manifest.about.get("ranks", 0),
            manifest.step == best,
            problem,
        )


def ago(then: float, now: float | None = None) -> str:
    """A time as people say it: 12 s, 5 min, 3 h, 2 days ago."""
    seconds = (time.time() if now is None else now) - then
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds / 86400:.0f} days ago"
