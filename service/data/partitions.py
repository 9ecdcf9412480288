"""Continuous mode: raw Parquet files that arrive in a watched folder, each encoded as a small dataset of its own.

A partition is one `*.parquet` file; its identity is its path in the folder, with `/`, whatever is in it: content
that changes after the partition was encoded is not looked at again. Partitions come in the text order of these
names. One that arrives late, with a name before ones that are done, comes next; one that is still being written
does not hold up those behind it. Parquet is whole when its footer, written last, can be read, so writers that
preallocate or copy out of order must write under another name and rename: anything that begins with `.` or `_`
or ends in `.tmp` or `.draft`, file or folder, is left alone.
"""

import hashlib
import os
import shutil
from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path
from time import monotonic

import pyarrow as pa
import pyarrow.parquet as pq

from sparta.models.errors import ConfigError, DataError
from sparta.models.schema import load_schema
from sparta.service.data.encode import Encoder
from sparta.service.data.parts import encode_rows, encoder_of, writing
from sparta.service.data.raw import RawFile
from sparta.service.data.rowgroups import RowGroups

SPLIT = "train"
"""The only split of an encoded partition."""


class PartitionError(DataError):
    """A partition that is no Parquet though nobody writes it any more, or that breaks a rule of the dataset's spec.

    Among `done` it is passed over.
    """

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name

    def __reduce__(self) -> tuple[type["PartitionError"], tuple[str, str]]:
        return type(self), (str(self), self.name)  # it goes from rank to rank; the default forgets the name


class Partitions:
    """The partitions of one folder, through the vocabularies of one dataset.

    Args:
        watched: folder of the raw files, at any depth below it.
        dataset: a prepared dataset with the same raw columns.
        scratch: folder of the encoded partitions, of this object alone.
        settle_seconds: how long an unreadable file must stay as it is to be called bad.

    Raises:
        ConfigError: `scratch` is in `watched`, so that what is made would be watched too.
        DataError: the dataset is missing or damaged.
    """

    def __init__(
        self, watched: Path, dataset: str | Path, scratch: Path, *, settle_seconds: float = 300.0
    ) -> None:
        if scratch.resolve().is_relative_to(watched.resolve()):
            raise ConfigError(
                f"{watched}: holds the folder of the encoded partitions, {scratch}; watch a folder of raw files only"
            )
        self._watched, self._dataset, self._scratch = watched, dataset, scratch
        self._settle_seconds = settle_seconds
        self._schema = load_schema(dataset)
        self._unreadable: dict[str, tuple[tuple[int, int], float]] = {}  # (size, mtime), and since when

    def next(self, done: Collection[str]) -> str | None:
        """The first partition that is complete and not among `done`; None while there is none.

        Raises:
            PartitionError: none is complete, and this is the first bad one.
            ConfigError: the watched folder is not there or cannot be read.
        """
        known = frozenset(done)
        bad: PartitionError | None = None
        for name in sorted(name for name in self._names() if name not in known):
            try:
                if self._complete(name):
                    return name
            except PartitionError as error:
                bad = bad or error
        if bad:
            raise bad
        return None

    def encode(self, name: str) -> Path:
        """The partition as a dataset folder of one split, in the order of its rows.

        A folder is there whole or not at all; it is kept until `drop`, so a resumed run sees the same rows. One
        that was torn or made with other vocabularies is made again. A partition may have no rows.

        Raises:
            ConfigError: the scratch folder cannot be written.
            DataError: the dataset is damaged.
            PartitionError: the file is damaged, or breaks a rule of the dataset's spec.
        """
        folder, draft = self._folders(name)
        if self._whole(folder):
            return folder
        self.drop(name)
        encoder = self._encoder
        try:
            try:
                rows = encode_rows(encoder, RawFile(self._watched / name, encoder.spec), draft / SPLIT)
            except DataError as error:
                raise PartitionError(str(error), name) from error
            with writing(draft):
                self._schema.model_copy(update={"splits": {SPLIT: rows}}).save(draft)
                os.rename(draft, folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return folder

    def drop(self, name: str) -> None:
        """Remove what `encode` made of it, if anything."""
        for folder in self._folders(name):
            shutil.rmtree(folder, ignore_errors=True)

    @cached_property
    def _encoder(self) -> Encoder:
        """Kept, as a large vocabulary takes longer to load than a partition to encode."""
        return encoder_of(self._dataset, self._schema)

    def _folders(self, name: str) -> tuple[Path, Path]:
        """Where the encoded partition is, and where it is made."""
        # A hash, because names have slashes and may be longer than the name of one folder.
        short = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
        return self._scratch / short, self._scratch / f".{short}.draft"

    def _whole(self, folder: Path) -> bool:
        try:
            schema = load_schema(folder)
            RowGroups(folder, schema, SPLIT)  # every footer, and the rows they add up to
        except DataError:
            return False
        return (schema.fingerprint, schema.columns) == (self._schema.fingerprint, self._schema.columns)

    def _names(self) -> Iterator[str]:
        if not self._watched.is_dir():
            raise ConfigError(f"{self._watched}: no such folder; make it, or watch another one")
        for folder, below, files in os.walk(self._watched, onerror=_complain):
            below[:] = filter(_final, below)
            for file in filter(_final, files):
                if file.lower().endswith(".parquet"):
                    yield (Path(folder) / file).relative_to(self._watched).as_posix()

    def _complete(self, name: str) -> bool:
        """Whether the file's footer can be read.

        Raises:
            PartitionError: it cannot, and nothing has happened to the file for long enough.
        """
        path = self._watched / name
        try:
            found = path.stat()
        except OSError:  # gone since the folder was listed
            return False
        try:
            pq.read_metadata(path)
        except FileNotFoundError:
            return False
        except (OSError, pa.ArrowException) as error:
            # By our own clock: that of a file server may differ, and copies keep the times of their originals.
            state, now = (found.st_size, found.st_mtime_ns), monotonic()
            before, since = self._unreadable.get(name, (state, now))
            if before != state:
                since = now
            self._unreadable[name] = state, since
            if now - since < self._settle_seconds:
                return False
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise PartitionError(
                f"{path}: not readable as Parquet ({reason}) and unchanged for {now - since:.0f} seconds; "
                "write it again or remove it",
                name,
            ) from error
        self._unreadable.pop(name, None)
        return True


def _final(name: str) -> bool:
    return not name.startswith((".", "_")) and not name.endswith((".tmp", ".draft"))


def _complain(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # a folder may go while the walk is on
        raise ConfigError(
            f"{error.filename}: cannot be listed ({error.strerror}); let this user read it"
        ) from error
