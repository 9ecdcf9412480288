"""What goes wrong in a save or while checkpoints are looked for costs none that is complete."""

import errno
import shutil
from pathlib import Path

import pytest

from sparta.models.errors import DataError
from sparta.service.checkpoint import manifest as disk
from sparta.service.checkpoint.storage import Storage
from sparta.service.checkpoint.store import Checkpoints
from sparta.service.world import World
from tests.service.checkpoint.tables import load, manifest, numbers, state


def test_a_later_one_of_a_step_is_newer_also_when_the_first_is_gone(alone: World, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1, background=False)
    for number in range(12):
        checkpoints.save(state(float(number)), manifest(4, settled=False))
    checkpoints.save(state(99.0), manifest(4))
    assert disk.committed(checkpoints.storage) == ["step-000000004-13"]
    found = Checkpoints(tmp_path).newest()
    assert found is not None
    assert load(checkpoints, found[0]) == numbers(state(99.0))
    for name in ("step-000000004-9", "step-000000004-10", "step-000000004-2"):
        shutil.copytree(tmp_path / "step-000000004-13", tmp_path / name)
    numbered = [disk.place_of(name)[1] for name in disk.committed(checkpoints.storage)]
    assert numbered == [2, 9, 10, 13]


def test_a_save_that_cannot_begin_leaves_those_of_its_step_alone(
    alone: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    checkpoints = Checkpoints(tmp_path, background=False)
    checkpoints.save(state(1.0), manifest(4, settled=False))
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "make", full)
        checkpoints.save(state(2.0), manifest(4))
    assert disk.committed(checkpoints.storage) == ["step-000000004"]
    assert load(checkpoints, "step-000000004") == numbers(state(1.0))


def test_a_storage_that_does_not_answer_costs_no_checkpoint(
    alone: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, background=False)
    checkpoints.save(state(1.0), manifest(1))
    plain = checkpoints.storage.fs.info

    def stale(path: str, **options: object) -> object:
        if path.endswith("COMMIT"):
            raise OSError(errno.ESTALE, "Stale file handle")
        return plain(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.storage.fs, "info", stale)
        with pytest.raises(DataError, match=r"cannot be read .*Stale file handle.*resume again"):
            checkpoints.newest()
        checkpoints.save(state(2.0), manifest(1, settled=False))
    found = checkpoints.newest()
    assert found is not None
    assert load(checkpoints, found[0]) == numbers(state(1.0))
