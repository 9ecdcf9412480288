"""The few file operations a checkpoint needs, on a local folder or any fsspec URL. No torch here.

What must survive a crash is synced where there is something to sync: a local file and its folder. An object
store has a file when the upload has ended, whole or not at all.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import fsspec

from sparta.models.errors import ConfigError


class Storage:
    """A folder; every name below it is relative.

    Args:
        root: a path, or a URL such as s3://bucket/run.

    Raises:
        ConfigError: no such protocol, or its package is not installed.
    """

    def __init__(self, root: str | Path) -> None:
        root = str(root).removeprefix("file://")  # what is local is synced
        self.root = root if "://" in root else str(Path(root).absolute())
        self.local = "://" not in self.root
        try:
            self.fs, self._path = fsspec.core.url_to_fs(self.root)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"{root}: no storage of that kind ({error}); install its fsspec package"
            ) from error

    def place(self, name: str) -> str:
        """The whole path or URL of something in the folder, for messages and other libraries."""
        return f"{self.root}/{name}"

    def names(self) -> list[str]:
        """What is in the folder, sorted; nothing if it is not there."""
        self.fs.invalidate_cache()
        try:
            found = self.fs.ls(self._path, detail=False)
        except FileNotFoundError:
            return []
        return sorted(name.rstrip("/").rpartition("/")[2] for name in found)

    def make(self, name: str = "") -> None:
        """Make a folder, and those above it."""
        self.fs.makedirs(f"{self._path}/{name}".rstrip("/"), exist_ok=True)

    def exists(self, name: str) -> bool:
        """Whether it is there.

        Raises:
            OSError: the storage does not answer; `fs.exists` would say that it is not there.
        """
        try:
            self.fs.info(f"{self._path}/{name}")
        except FileNotFoundError:
            return False
        return True

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return int(self.fs.size(f"{self._path}/{name}"))

    def read(self, name: str) -> bytes:
        content: bytes = self.fs.cat_file(f"{self._path}/{name}")
        return content

    @contextmanager
    def reading(self, name: str) -> Iterator[IO[bytes]]:
        """A file's bytes from the first on; not buffered, for large reads."""
        if self.local:
            with Path(self._path, name).open("rb", buffering=0) as file:
                yield file
        else:
            with self.fs.open(f"{self._path}/{name}", "rb") as file:
                yield file

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """A new file to write; the caller syncs what must last."""
        with self.fs.open(f"{self._path}/{name}", "wb") as file:
            yield file

    def write(self, name: str, text: str) -> None:
        """A reader sees the whole file or none, also after a power cut."""
        path = f"{self._path}/{name}"
        if not self.local:
            self.fs.pipe_file(path, text.encode())
            return
        draft = Path(path + ".draft")
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        self.sync(str(Path(name).parent))

    def sync(self, name: str = ".") -> None:
        """Have the folder's list of names on the disk."""
        if self.local:
            descriptor = os.open(Path(self._path, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def rename(self, name: str, to: str) -> None:
        self.fs.mv(f"{self._path}/{name}", f"{self._path}/{to}", recursive=True)

    def remove_file(self, name: str) -> None:
        self.fs.rm_file(f"{self._path}/{name}")

    def remove(self, name: str, first: str) -> None:
        """Remove a folder, and the file `first` of it before the others; nothing if it is not there."""
        with suppress(FileNotFoundError):
            self.remove_file(f"{name}/{first}")
        with suppress(FileNotFoundError):
            self.fs.rm(f"{self._path}/{name}", recursive=True)
