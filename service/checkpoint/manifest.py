"""What makes a folder a checkpoint, and how it is told from a torn or damaged one. No torch here.

    checkpoints/step-000001000/    *.distcp, .metadata    torch.distributed.checkpoint's
                                   MANIFEST.json          size and sha256 of these, and where training stood
                                   COMMIT                 sha256 of the manifest, written last
    checkpoints/damaged-step-...   was committed, does not match its manifest: set aside, never read

Without COMMIT a folder is what a save left that was killed; the next start removes it.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from sparta.models.errors import DataError
from sparta.service.checkpoint.storage import Storage

FORMAT = 2
"""Version of a checkpoint. 1 had weights only and no manifest; it can still be scored."""

MANIFEST, COMMIT = "MANIFEST.json", "COMMIT"
PREFIX, DAMAGED = "step-", "damaged-"

CHUNK_BYTES = 1 << 22


class DamageError(DataError):
    """A checkpoint that is not what was committed; one that cannot be read for another reason is not damaged."""


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


def name_of(step: int) -> str:
    """The folder of the checkpoint after a step."""
    return f"{PREFIX}{step:09d}"


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
    return [name for name in storage.names() if name.startswith(PREFIX)]


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
        raise DamageError(
            f"{place}: {COMMIT} is missing or broken, so the checkpoint is not complete; take another"
        ) from error
    if found not in (1, FORMAT):
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
            raise DamageError(
                f"{place}: {MANIFEST} is not the one that was committed; take another checkpoint"
            )
        raw = json.loads(text)
        files = {name: (int(size), str(digest)) for name, (size, digest) in raw.pop("files").items()}
        return Manifest(**raw, files=files)
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise DamageError(
            f"{place}: {MANIFEST} is missing or broken ({error}); take another checkpoint"
        ) from error


def damage(storage: Storage, name: str, manifest: Manifest, files: Iterable[str] | None = None) -> str | None:
    """What is wrong with some files of a checkpoint (all by default), read to the last byte; None if nothing.

    Raises:
        OSError: the storage does not answer, which says nothing of the checkpoint.
    """
    for file in manifest.files if files is None else files:
        size, digest = manifest.files[file]
        try:
            found = storage.size(f"{name}/{file}")
            if found != size:
                return f"{file} has {found} bytes of {size}"
            if digest != sha256(storage, f"{name}/{file}"):
                return f"{file} does not match its checksum"
        except FileNotFoundError:
            return f"{file} is gone"
    return None


def sha256(storage: Storage, name: str) -> str:
    """The checksum of a file."""
    total, buffer = hashlib.sha256(), bytearray(CHUNK_BYTES)
    with storage.reading(name) as file:
        while size := file.readinto(buffer):  # type: ignore[attr-defined]
            total.update(memoryview(buffer)[:size])
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
            stays |= {other for other in complete if best is not None and other.startswith(name_of(best))}
    return stays


def torn(storage: Storage) -> Iterator[str]:
    """Folders that a killed save left."""
    complete: Sequence[str] = committed(storage)
    yield from (name for name in steps(storage) if name not in complete)
