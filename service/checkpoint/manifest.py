"""What makes a folder a checkpoint, and how it is told from a torn or damaged one. No torch here.

    checkpoints/step-000001000/    *.distcp, .metadata    torch.distributed.checkpoint's
                                   MANIFEST.json          size and sha256 of these, and where training stood
                                   COMMIT                 sha256 of the manifest, written last
    checkpoints/OWNER              the run they are of
    checkpoints/damaged-step-...   was committed, does not match its manifest: set aside, never read

Without COMMIT a folder is what a save left that was killed; the next start removes it.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from sparta.models.errors import DataError
from sparta.service.checkpoint.storage import Storage

FORMAT = 3
"""Version of a checkpoint. 1 had weights only and no manifest; it can still be scored. In 2 no row owed decay."""

MANIFEST, COMMIT, OWNER = "MANIFEST.json", "COMMIT", "OWNER"
PREFIX, DAMAGED = "step-", "damaged-"

CHUNK_BYTES = 1 << 22

_NAME = re.compile(rf"{PREFIX}\d+(-\d+)?")


class DamageError(DataError):
    """A checkpoint that is not what was committed; one that cannot be read for another reason is not damaged."""

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(place, problem)  # such that it can be sent to the other ranks
        self.place, self.problem = place, problem

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}; take another checkpoint"


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds, beside its tensors."""

    step: int
    """Optimizer steps taken."""
    training: Mapping[str, Any]
    """Where the trainer stood (`Trainer.state_dict`)."""
    schema: Mapping[str, Any] = field(default_factory=dict)
    """What the ids mean."""
    files: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    """Bytes and sha256 by name."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """For people and for refusals: ranks, threads, device, versions, seconds."""
    format: int = FORMAT

    @property
    def bytes(self) -> int:
        return sum(size for size, _ in self.files.values())

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"


def name_of(step: int, number: int = 1) -> str:
    """The folder of the checkpoint after a step, or of the second, third, ... one after the same."""
    return f"{PREFIX}{step:09d}" + (f"-{number}" if number > 1 else "")


def place_of(name: str) -> tuple[int, int]:
    """(step, number) of such a folder, by which they are ordered."""
    step, _, number = name.removeprefix(PREFIX).partition("-")
    return int(step), int(number or 1)


def commit(storage: Storage, name: str, text: str) -> None:
    """Make a written folder a checkpoint; `text` is its manifest as it was written."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    storage.write(f"{name}/{COMMIT}", json.dumps({"format": FORMAT, "manifest": digest}) + "\n")
    storage.sync()


def committed(storage: Storage) -> list[str]:
    """The checkpoints, oldest first."""
    return [name for name in steps(storage) if storage.exists(f"{name}/{COMMIT}")]


def steps(storage: Storage) -> list[str]:
    """Folders of checkpoints, complete or not, oldest first."""
    return sorted((name for name in storage.names() if _NAME.fullmatch(name)), key=place_of)


def format_of(storage: Storage, name: str) -> int:
    """The version of a checkpoint.

    Raises:
        DamageError: it has no COMMIT or one that is broken.
        DataError: a version this sparta does not read.
    """
    place = storage.place(name)
    try:
        found = json.loads(storage.read(f"{name}/{COMMIT}"))["format"]
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise DamageError(place, f"{COMMIT} is missing or broken") from error
    if found not in (1, 2, FORMAT):
        raise DataError(
            f"{place}: checkpoint format {found}, this sparta reads {FORMAT}; use the sparta that wrote it"
        )
    return int(found)


def read_manifest(storage: Storage, name: str) -> Manifest:
    """The manifest of a checkpoint, checked against COMMIT.

    Raises:
        DamageError: either is missing or broken.
        DataError: another version.
    """
    place = storage.place(name)
    if format_of(storage, name) == 1:
        raise DataError(
            f"{place}: checkpoint format 1 holds weights only, so training cannot go on from it; "
            "start a new run with --from and --weights-only"
        )
    try:
        text = storage.read(f"{name}/{MANIFEST}")
        expected = json.loads(storage.read(f"{name}/{COMMIT}"))["manifest"]
        if hashlib.sha256(text).hexdigest() != expected:
            raise DamageError(place, f"{MANIFEST} is not the one that was committed")
        raw = json.loads(text)
        files = {name: (int(size), str(digest)) for name, (size, digest) in raw.pop("files").items()}
        return Manifest(**raw, files=files)
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise DamageError(place, f"{MANIFEST} is missing or broken") from error


def damage(
    storage: Storage,
    name: str,
    manifest: Manifest,
    files: Iterable[str] | None = None,
    alive: Callable[[], None] = lambda: None,
    *,
    every_byte: bool = True,
) -> str | None:
    """What is wrong with some files of a checkpoint (all by default), read to the last byte; None if nothing.

    Args:
        alive: called now and then.
        every_byte: else it is their names and sizes only that are compared.

    Raises:
        OSError: the storage does not answer, which says nothing of the checkpoint.
    """
    for file in manifest.files if files is None else files:
        size, digest = manifest.files[file]
        try:
            found = storage.size(f"{name}/{file}")
            if found != size:
                return f"{file} has {found} bytes of {size}"
            if every_byte and digest != sha256(storage, f"{name}/{file}", alive):
                return f"{file} does not match its checksum"
        except FileNotFoundError:
            return f"{file} is gone"
    return None


def check(storage: Storage, name: str, way_out: str) -> None:
    """Refuse a damaged checkpoint; one of format 1 has nothing to compare it with.

    Raises:
        DataError: naming the file and the way out.
        OSError: the storage does not answer.
    """
    try:
        problem = None
        if format_of(storage, name) != 1:
            problem = damage(storage, name, read_manifest(storage, name))
    except DamageError as error:
        problem = error.problem
    if problem:
        raise DataError(f"{storage.place(name)}: {problem}; {way_out}")


def sha256(storage: Storage, name: str, alive: Callable[[], None] = lambda: None) -> str:
    """The checksum of a file."""
    total, buffer = hashlib.sha256(), bytearray(CHUNK_BYTES)
    with storage.reading(name) as file:
        while size := file.readinto(buffer):  # type: ignore[attr-defined]
            total.update(memoryview(buffer)[:size])
            alive()
    return total.hexdigest()


def shares(files: Mapping[str, tuple[int, str]], ranks: int) -> list[list[str]]:
    """The files dealt to the ranks, such that each has about as many bytes to read."""
    dealt: list[list[str]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for name in sorted(files, key=lambda name: (-files[name][0], name)):
        least = loads.index(min(loads))
        dealt[least].append(name)
        loads[least] += files[name][0]
    return dealt


def kept(storage: Storage, newest: int) -> set[str]:
    """Checkpoints that stay: the newest ones, and what each of them calls the best so far."""
    complete = committed(storage)
    stays = set(complete[-newest:])
    for name in complete[-newest:]:
        with suppress(DataError):  # a damaged one knows of no best
            best = read_manifest(storage, name).training.get("best_step")
            stays |= {other for other in complete if place_of(other)[0] == best}
    return stays


def torn(storage: Storage) -> Iterator[str]:
    """Folders that a killed save left."""
    complete: Sequence[str] = committed(storage)
    yield from (name for name in steps(storage) if name not in complete)
