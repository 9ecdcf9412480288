"""torch.distributed.checkpoint's files, with a checksum taken of every byte as it is written."""

import hashlib
import logging
import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemBase, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from sparta.models.errors import DataError
from sparta.service.checkpoint.storage import Storage

Files = dict[str, tuple[int, str]]
"""Bytes and sha256 by name."""


OTHERS = "others"
"""The phase of a save in which a rank has written what is his and waits."""


class _Hashed:
    """A file being written; what torch's writers ask of it."""

    def __init__(self, file: IO[bytes], wrote: Callable[[int], None]) -> None:
        self._file = file
        self._wrote = wrote
        self.bytes = 0
        self.hash = hashlib.sha256()

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self.hash.update(view)
        self.bytes += len(view)
        done = 0
        while done < len(view):  # an unbuffered file may take less
            done += self._file.write(view[done:])
        self._wrote(done)
        return done

    def tell(self) -> int:
        return self.bytes

    def fileno(self) -> int:
        """For torch's fsync, which forgets what Python has not handed over yet."""
        self._file.flush()
        return self._file.fileno()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _Folder(FileSystemBase):
    """One folder of a storage as torch wants it; paths are names in the storage."""

    def __init__(self, storage: Storage, began: Callable[[str], None], wrote: Callable[[int], None]) -> None:
        self.written: Files = {}
        self._storage = storage
        self._began = began
        self._wrote = wrote

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[Any]:
        path = os.fspath(path)
        if mode == "rb":
            with self._storage.reading(path) as file:
                yield file
            return
        name = os.path.basename(path).removesuffix(".tmp")  # .metadata is renamed into place
        self._began("metadata" if name == ".metadata" else "data")
        with self._storage.writing(path) as file:
            hashed = _Hashed(file, self._wrote)
            yield hashed
        self.written[name] = (hashed.bytes, hashed.hash.hexdigest())
        self._began(OTHERS)

    def concat_path(self, path: str | os.PathLike[str], suffix: str) -> str:
        return f"{os.fspath(path)}/{suffix}"

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        self._storage.rename(os.fspath(path), os.fspath(new_path))

    def init_path(self, path: str | os.PathLike[str]) -> str:
        return os.fspath(path)

    def mkdir(self, path: str | os.PathLike[str]) -> None:
        self._storage.make(os.fspath(path))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True

    def exists(self, path: str | os.PathLike[str]) -> bool:
        return self._storage.exists(os.fspath(path))

    def rm_file(self, path: str | os.PathLike[str]) -> None:
        self._storage.remove_file(os.fspath(path))


def write(
    state: Mapping[str, Any],
    storage: Storage,
    name: str,
    *,
    group: dist.ProcessGroup | None,
    began: Callable[[str], None] = lambda phase: None,
    wrote: Callable[[int], None] = lambda size: None,
) -> Files:
    """Write a state into a fresh folder; the files that this rank wrote. Collective over the group.

    Args:
        began: told of the phases `data` and `metadata` as they begin.
        wrote: told of the bytes as they go.
    """
    folder = _Folder(storage, began, wrote)
    writer = FileSystemWriter(name, sync_files=storage.local)
    writer.fs, writer.path = folder, name  # type: ignore[assignment]
    # The zip format's own checksum takes as long as writing does, and we have a better one.
    torch.serialization.set_crc32_options(False)
    save(dict(state), storage_writer=writer, process_group=group)
    return folder.written


def read(state: dict[str, Any], storage: Storage, name: str, *, alone: bool = False) -> None:
    """Fill the tensors of a state, and replace its other values. Collective, unless this process is `alone`."""
    with warnings.catch_warnings():
        if alone:  # torch says so too
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
        load(state, storage_reader=_reader(storage, name), no_dist=alone)


def sizes(storage: Storage, name: str) -> dict[str, tuple[torch.Size, torch.dtype] | None]:
    """(shape, type) of every tensor in a checkpoint by name; None for what is no tensor."""
    held = _reader(storage, name).read_metadata().state_dict_metadata
    return {
        key: (value.size, value.properties.dtype) if isinstance(value, TensorStorageMetadata) else None
        for key, value in held.items()
    }


@contextmanager
def one_line(place: str = "", way_out: str = "") -> Iterator[None]:
    """Turn what torch raises about a checkpoint into one line; every rank gets it."""
    logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)
    try:
        yield
    except (CheckpointException, OSError, pickle.UnpicklingError, EOFError) as error:
        reasons = (
            [failure for failure, _ in error.failures.values()]
            if isinstance(error, CheckpointException)
            else [error]
        )
        words = str(reasons[0]).strip().splitlines() or [type(reasons[0]).__name__]
        raise DataError(f"{place}: {way_out} ({words[0]})" if place else words[0]) from error


def _reader(storage: Storage, name: str) -> FileSystemReader:
    reader = FileSystemReader(name)
    reader.fs, reader.path = _Folder(storage, _nothing, _nothing), name  # type: ignore[assignment]
    return reader


def _nothing(_: object) -> None:
    """Reading has no phases."""
