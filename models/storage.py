"""Where a dataset's files are: below a local folder, or below a URL of any kind that fsspec reads.

A URL stays text, as `pathlib.Path` would make `s3:/bucket` of `s3://bucket`. Local paths never touch fsspec,
which is not even imported for them. Reading only; no torch here.
"""

import errno
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sparta.models.errors import ConfigError


def is_url(path: str | Path) -> bool:
    """True of `s3://bucket/folder`, `memory://x`, `file:///x`."""
    return isinstance(path, str) and "://" in path


def join(folder: str | Path, *names: str) -> str | Path:
    """The path of a file below a folder, of the folder's kind."""
    if is_url(folder):
        return f"{folder}{'' if str(folder).endswith('/') else '/'}{'/'.join(names)}"
    return Path(folder, *names)


def read_bytes(path: str | Path) -> bytes:
    """All of a file.

    Raises:
        ConfigError: no file system of that name, or its package is not installed.
        OSError: there is no such file, or the file system does not answer.
    """
    if not is_url(path):
        return Path(path).read_bytes()
    with _asking(path) as (system, place):
        return bytes(system.cat_file(place))


def is_folder(path: str | Path) -> bool:
    """Whether there is such a folder; in an object store: whether anything lies below it. Raises as `read_bytes`."""
    if not is_url(path):
        return Path(path).is_dir()
    with _asking(path) as (system, place):
        return bool(system.isdir(place))


def files(folder: str | Path, suffix: str) -> list[str | Path]:
    """The files of a folder whose names end so, in the order of their names; none if there is no such folder.

    Raises as `read_bytes` does.
    """
    if not is_url(folder):
        return [*sorted(Path(folder).glob(f"*{suffix}"))]
    with _asking(folder) as (system, place):
        try:
            found = system.ls(place, detail=False)
        except FileNotFoundError:
            return []
    names = sorted(str(path).rsplit("/", 1)[-1] for path in found)
    return [join(folder, name) for name in names if name.endswith(suffix)]


def opened(path: str | Path) -> AbstractContextManager[Any]:
    """What Arrow reads a file from: a local path itself, or an open file; both raise as `read_bytes` does."""
    if not is_url(path):
        return nullcontext(path)
    with _asking(path) as (system, place):
        # Arrow asks for the ranges it needs; a cache would fetch megabytes behind each of them.
        return _Opened(system.open(place, "rb", cache_type="none"))


class _Opened:
    """An open file whose failed reads are OSErrors, whatever its package raises."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        with _os_errors():
            return bytes(self._file.read(size))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_Opened":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@contextmanager
def _asking(url: str | Path) -> Iterator[tuple[Any, str]]:
    """The URL's file system and the path in it."""
    from fsspec.core import url_to_fs

    with _os_errors():
        try:
            system, place = url_to_fs(str(url))
        except ImportError as error:
            package = getattr(error.__cause__, "name", None) or "the package it names"
            raise ConfigError(f"{url}: {error}; `pip install {package}`") from error
        except ValueError as error:
            raise ConfigError(f"{url}: {error}; give a folder or a URL such as s3://bucket/folder") from error
        yield system, place


@contextmanager
def _os_errors() -> Iterator[None]:
    """Packages raise classes of their own; EIO tells a storage that fails from a file that is damaged."""
    try:
        yield
    except (ConfigError, OSError):
        raise
    except Exception as error:
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}") from error
