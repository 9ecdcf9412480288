"""What a write says of its files is what is on the disk, and any ranks under any plan read the same state back."""

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from sparta.models.errors import DataError
from sparta.service.checkpoint.files import one_line, read, sizes, write
from sparta.service.checkpoint.manifest import sha256
from sparta.service.checkpoint.storage import Storage
from sparta.service.world import World
from tests.pool import Pool
from tests.service.checkpoint.tables import numbers, state

KINDS = ("rows", "columns", "last")


def saved(rank: int, ranks: int, root: str, kinds: tuple[str, ...]) -> list[Any]:
    """What each write told this rank: files, phases, bytes."""
    told = []
    for kind in kinds:
        Storage(root).make(kind)
        phases: list[str] = []
        wrote: list[int] = []
        files = write(
            state(3.0, rank, ranks, kind),
            Storage(root),
            kind,
            group=None,
            began=phases.append,
            wrote=wrote.append,
        )
        told.append((files, phases, sum(wrote)))
    return told


def loaded(rank: int, ranks: int, root: str, names: tuple[str, ...]) -> bool:
    """Whether every checkpoint gives this rank its part of the state, under every plan."""
    for name in names:
        for kind in KINDS:
            mine = state(0.0, rank, ranks, kind)
            read(mine, Storage(root), name)
            assert numbers(mine) == numbers(state(3.0, rank, ranks, kind))
    return True


@pytest.fixture(scope="module", params=["", "local://"])
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"{request.param}{tmp_path_factory.mktemp('files')}"


@pytest.fixture(scope="module")
def told(pool: Pool, root: str) -> list[list[Any]]:
    """By rank and kind of plan, after a write on two ranks."""
    return pool.run(2, saved, root, KINDS)


def test_bytes_and_checksums_are_those_on_the_disk(root: str, told: list[list[Any]]) -> None:
    for number, kind in enumerate(KINDS):
        (first, _, _), (second, _, _) = (of_rank[number] for of_rank in told)
        assert not first.keys() & second.keys()
        assert {".metadata"} < first.keys()
        folder = Path(root.removeprefix("local://"), kind)
        assert {path.name: described(path) for path in folder.iterdir()} == {**first, **second}


def described(path: Path) -> tuple[int, str]:
    content = path.read_bytes()
    return len(content), hashlib.sha256(content).hexdigest()


def test_phases_and_bytes_are_told_as_they_go(told: list[list[Any]]) -> None:
    for of_rank, phases in zip(
        told, (["data", "others", "metadata", "others"], ["data", "others"]), strict=True
    ):
        for files, began, wrote in of_rank:
            assert began == phases
            assert wrote == sum(size for size, _ in files.values())


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_plan_reads_what_any_plan_wrote(
    pool: Pool, root: str, told: list[list[Any]], ranks: int
) -> None:
    assert all(pool.run(ranks, loaded, root, KINDS))


def test_one_process_reads_it_without_a_process_group(root: str, told: list[list[Any]]) -> None:
    mine = state(0.0)
    read(mine, Storage(root), "columns", alone=True)
    assert numbers(mine) == numbers(state(3.0))


def test_sizes_are_those_of_whole_tensors(root: str, told: list[list[Any]]) -> None:
    assert sizes(Storage(root), "rows") == {
        "tables/t": ((7, 4), torch.float32),
        "dense/w": ((3,), torch.float32),
        "optim/step": ((), torch.int64),
        "rng/0.draws": None,
        "rng/1.draws": None,
    }


def test_every_byte_of_a_local_file_is_synced(
    alone: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: dict[str, int] = {}
    plain = os.fsync

    def fsync(descriptor: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.removesuffix(".tmp")
        synced[name] = os.fstat(descriptor).st_size
        plain(descriptor)

    storage = Storage(tmp_path)
    storage.make("here")
    monkeypatch.setattr(os, "fsync", fsync)
    files = write(state(3.0), storage, "here", group=None)
    assert synced == {name: size for name, (size, _) in files.items()}


def test_a_memory_store_is_as_good(alone: World) -> None:
    storage = Storage("memory://files")
    storage.make("here")
    files = write(state(3.0), storage, "here", group=None)
    for name, (size, digest) in files.items():
        assert (size, digest) == (storage.size(f"here/{name}"), sha256(storage, f"here/{name}"))
    mine = state(0.0)
    read(mine, storage, "here")
    assert numbers(mine) == numbers(state(3.0))


def test_what_torch_raises_is_one_line(alone: World, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error, one_line("here", "give another"):
        read(state(0.0), Storage(tmp_path), "nowhere")
    assert str(error.value).startswith("here: give another (")
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match=r"^disk is full$"), one_line():
        raise OSError("disk is full\nreally")
