"""A local folder, a file:// URL and an object store (memory://) do the same; small files are whole or absent."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from sparta.models.errors import ConfigError
from sparta.service.checkpoint.storage import Storage


@pytest.fixture(params=["path", "file", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    """The same folder behind each kind of address."""
    memory = fsspec.filesystem("memory")
    roots = {"path": tmp_path, "file": f"file://{tmp_path}", "memory": f"memory://{tmp_path}"}
    yield Storage(roots[request.param])
    if memory.exists(str(tmp_path)):
        memory.rm(str(tmp_path), recursive=True)


def test_a_folder_that_is_not_there_has_no_names(storage: Storage) -> None:
    assert Storage(storage.place("nowhere")).names() == []


def test_what_is_written_is_read_back_and_listed_in_order(storage: Storage) -> None:
    for name in ("step-2", "step-10", "a", "damaged-step-1"):
        storage.make(name)
        storage.write(f"{name}/COMMIT", f"{name} ü\n")
    assert storage.names() == ["a", "damaged-step-1", "step-10", "step-2"]
    for name in storage.names():
        content = f"{name} ü\n".encode()
        assert storage.read(f"{name}/COMMIT") == content
        assert storage.size(f"{name}/COMMIT") == len(content)
        with storage.reading(f"{name}/COMMIT") as file:
            assert file.read() == content
    storage.write("a/COMMIT", "")
    assert storage.read("a/COMMIT") == b""


def test_a_stream_is_read_back(storage: Storage) -> None:
    storage.make("step-1")
    with storage.writing("step-1/data") as file:
        file.write(b"one")
        file.write(b"two")
    assert storage.read("step-1/data") == b"onetwo"
    assert storage.exists("step-1/data")
    assert not storage.exists("step-1/other")


def test_making_a_folder_twice_keeps_what_is_in_it(storage: Storage) -> None:
    storage.make("step-1")
    storage.write("step-1/COMMIT", "here")
    storage.make("step-1")
    assert storage.read("step-1/COMMIT") == b"here"


def test_a_renamed_folder_keeps_its_files(storage: Storage) -> None:
    storage.make("step-1")
    storage.write("step-1/COMMIT", "here")
    storage.rename("step-1", "damaged-step-1")
    assert storage.names() == ["damaged-step-1"]
    assert storage.read("damaged-step-1/COMMIT") == b"here"


def test_what_is_missing_is_an_os_error(storage: Storage) -> None:
    actions: list[Callable[[str], object]] = [storage.read, storage.size, storage.remove_file]
    for action in actions:
        with pytest.raises(FileNotFoundError):
            action("step-1/data")
    with pytest.raises(FileNotFoundError), storage.reading("step-1/data"):
        pass


def test_a_folder_is_removed_with_its_marker_first(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.make("step-1")
    for name in ("a", "COMMIT", "z"):
        storage.write(f"step-1/{name}", name)
    seen: list[list[bool]] = []

    def look(*arguments: object, **options: object) -> None:
        seen.append([storage.exists(f"step-1/{name}") for name in ("a", "COMMIT", "z")])
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(storage.fs, "rm", look)
        with pytest.raises(OSError, match="killed"):
            storage.remove("step-1", "COMMIT")
    assert seen == [[True, False, True]]
    storage.remove("step-1", "COMMIT")
    assert storage.names() == []
    storage.remove("step-1", "COMMIT")  # nothing to do is no mistake


@pytest.mark.parametrize("fails", ["open", "fsync", "replace"])
def test_a_local_file_that_cannot_be_written_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    storage = Storage(tmp_path)
    storage.write("COMMIT", "old")

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("COMMIT", "MANIFEST.json"):
        with monkeypatch.context() as patch:
            patch.setattr(
                *{"open": (Path, "open"), "fsync": (os, "fsync")}.get(fails, (Path, "replace")), full
            )
            with pytest.raises(OSError, match="No space"):
                storage.write(name, "new")
    assert storage.read("COMMIT") == b"old"
    assert not storage.exists("MANIFEST.json")


def test_a_local_file_is_on_the_disk_before_it_has_its_name_and_its_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    plain = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), sorted(os.listdir(tmp_path / "step-1"))))
        plain(descriptor)

    storage = Storage(tmp_path)
    storage.make("step-1")
    monkeypatch.setattr(os, "fsync", fsync)
    storage.write("step-1/COMMIT", "here")
    folder = str(tmp_path / "step-1")
    assert synced == [(f"{folder}/COMMIT.draft", ["COMMIT.draft"]), (folder, ["COMMIT"])]


def test_a_relative_path_is_where_it_was_when_the_folder_was_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    storage = Storage("checkpoints")
    monkeypatch.chdir("/")
    storage.make("step-1")
    assert (tmp_path / "checkpoints" / "step-1").is_dir()
    assert storage.place("step-1") == f"{tmp_path}/checkpoints/step-1"


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    storage = Storage(f"file://{tmp_path}/there")
    assert (storage.root, storage.local) == (f"{tmp_path}/there", True)


def test_an_unknown_kind_of_url_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="nosuch://x: no storage of that kind") as error:
        Storage("nosuch://x")
    assert "\n" not in str(error.value)
