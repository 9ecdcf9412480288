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
    """This and what follows is known only of one that has its manifest."""
    bytes: int | None = None
    seconds: float | None = None
    """Saving took, from the step it was taken in to the commit."""
    at: float | None = None
    """When it was taken, in seconds since 1970."""
    ranks: int | None = None
    best: bool = False
    """The newest complete checkpoint calls it the best."""
    problem: str | None = None


def entries(storage: Storage, *, every_byte: bool = False) -> list[Entry]:
    """All of them, oldest first.

    Args:
        every_byte: read the files and compare their checksums, not their names and sizes only.
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
            problem = str(error).removeprefix(f"{storage.place(name)}: ")
            yield Entry(
                name, "damaged", problem=error.problem if isinstance(error, disk.DamageError) else problem
            )
            continue
        damage = disk.damage(storage, name, manifest, every_byte=every_byte)
        yield Entry(
            name,
            "damaged" if damage else "complete",
            manifest.step,
            manifest.bytes,
            manifest.about.get("seconds"),
            manifest.about.get("at"),
            manifest.about.get("ranks"),
            manifest.step == best,
            damage,
        )


def age(then: float, now: float | None = None) -> str:
    """How long ago a time was, as people say it: 12 s, 5 min, 3 h, 2 days."""
    seconds = (time.time() if now is None else now) - then
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"
