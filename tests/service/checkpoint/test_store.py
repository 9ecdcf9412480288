"""Saves beside the training: what they hold, what stays of them, what a failure costs, and how they are found."""

import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from sparta.models.errors import DataError
from sparta.service.checkpoint import manifest as disk
from sparta.service.checkpoint.find import find, of_step
from sparta.service.checkpoint.manifest import Manifest
from sparta.service.checkpoint.storage import Storage
from sparta.service.checkpoint.store import Checkpoints
from sparta.service.world import World
from tests.pool import Pool
from tests.service.checkpoint.tables import load, manifest, numbers, state

PATIENCE_SECONDS = 60.0


class Gate:
    """Holds the thread of a save up when it begins to write data."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

    def __call__(self, phase: str) -> None:
        if phase == "data":
            self.reached.set()
            assert self.open.wait(PATIENCE_SECONDS)


def test_a_save_holds_what_was_there_when_it_was_asked_for(alone: World, tmp_path: Path) -> None:
    gate = Gate()
    checkpoints = Checkpoints(tmp_path, began=gate)
    live = state(1.0)
    checkpoints.save(live, manifest(1))
    assert gate.reached.wait(PATIENCE_SECONDS)
    assert disk.committed(checkpoints.storage) == []
    for window in live["tables/t"].windows:
        window.values.fill_(-1)
    live["dense/w"].fill_(-1)
    live["optim/step"].fill_(-1)
    gate.open.set()
    checkpoints.finish()
    assert load(checkpoints, "step-000000001") == numbers(state(1.0))
    assert checkpoints.saved == 1


def test_a_save_waits_for_the_one_before(alone: World, tmp_path: Path) -> None:
    gate = Gate()
    checkpoints = Checkpoints(tmp_path, began=gate)
    checkpoints.save(state(1.0), manifest(1))
    assert gate.reached.wait(PATIENCE_SECONDS)
    threading.Timer(0.05, gate.open.set).start()
    checkpoints.save(state(2.0), manifest(2))
    assert checkpoints.saved == 1  # or the copy would have been overwritten
    checkpoints.finish()
    assert checkpoints.log.stall_seconds > 0.04  # the steps stood all the while
    for step in (1, 2):
        assert load(checkpoints, disk.name_of(step)) == numbers(state(float(step)))


def test_leaves_no_threads_behind(alone: World, tmp_path: Path) -> None:
    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    before = []
    for number in range(4):
        checkpoints = Checkpoints(tmp_path / str(number))
        checkpoints.save(state(1.0), manifest(1))
        checkpoints.finish()
        before.append(threads())
    assert before[-1] <= before[1]  # what the first starts for all of them may stay


def test_in_the_foreground_all_is_on_the_disk_at_once(alone: World, tmp_path: Path) -> None:
    phases: list[str] = []
    checkpoints = Checkpoints(tmp_path, background=False, began=phases.append)
    checkpoints.save(state(1.0), manifest(1))
    assert disk.committed(checkpoints.storage) == ["step-000000001"]
    assert phases == ["copy", "data", "others", "metadata", "others", "manifest", "commit", "retain", ""]


def test_the_newest_and_the_best_stay(alone: World, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2, background=False)
    bests = {1: None, 2: 2, 3: 2, 4: 2, 5: 2, 6: 6, 7: 6, 8: 6, 9: 6}
    there = []
    for step, best in bests.items():
        checkpoints.save(state(float(step)), manifest(step, best_step=best))
        there.append([int(name.removeprefix(disk.PREFIX)) for name in checkpoints.storage.names()])
    assert there == [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5], [2, 5, 6], [6, 7], [6, 7, 8], [6, 8, 9]]
    storage = checkpoints.storage
    assert (find(storage, "best"), find(storage, "last")) == ("step-000000006", "step-000000009")
    assert load(checkpoints, find(storage, "best")) == numbers(state(6.0))


def test_the_same_step_is_saved_again_only_if_more_has_been_done(alone: World, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, background=False)
    checkpoints.save(state(1.0), manifest(4, settled=False))
    checkpoints.save(state(2.0), manifest(4))
    checkpoints.save(state(3.0), manifest(4))
    assert disk.committed(checkpoints.storage) == ["step-000000004", "step-000000004-2"]
    assert load(checkpoints, "step-000000004") == numbers(state(1.0))  # what is committed is not written over
    assert load(checkpoints, of_step(checkpoints.storage, 4)) == numbers(state(2.0))
    assert find(checkpoints.storage, "last") == "step-000000004-2"


def test_what_a_killed_save_left_is_written_over(alone: World, tmp_path: Path) -> None:
    (tmp_path / "step-000000004").mkdir()
    (tmp_path / "step-000000004" / "__0_0.distcp").write_bytes(b"half")
    (tmp_path / "step-000000004" / "__7_0.distcp").write_bytes(b"half")
    checkpoints = Checkpoints(tmp_path, background=False)
    checkpoints.save(state(1.0), manifest(4))
    assert disk.committed(checkpoints.storage) == ["step-000000004"]
    assert load(checkpoints, "step-000000004") == numbers(state(1.0))
    assert not (tmp_path / "step-000000004" / "__7_0.distcp").exists()


@contextmanager
def full_disk(patch: pytest.MonkeyPatch, part: str) -> Iterator[None]:
    """No space for files of this name."""
    plain, text = Storage.writing, Storage.write

    @contextmanager
    def writing(self: Storage, name: str) -> Iterator[IO[bytes]]:
        if part in name:
            raise OSError(errno.ENOSPC, "No space left on device")
        with plain(self, name) as file:
            yield file

    def write(self: Storage, name: str, content: str) -> None:
        if part in name:
            raise OSError(errno.ENOSPC, "No space left on device")
        text(self, name, content)

    with patch.context() as inner:
        inner.setattr(Storage, "writing", writing)
        inner.setattr(Storage, "write", write)
        yield


def fail_once(rank: int, ranks: int, folder: Path, victim: int, part: str) -> dict[str, Any]:
    """A save, one that fails on one rank, and one more."""
    checkpoints = Checkpoints(folder)
    checkpoints.save(state(1.0, rank, ranks), manifest(1))
    assert checkpoints.wait()
    with full_disk(pytest.MonkeyPatch(), part if rank == victim else "nothing of that name"):
        checkpoints.save(state(2.0, rank, ranks), manifest(2))
        succeeded = checkpoints.wait()
    after = disk.committed(checkpoints.storage), checkpoints.log.failures, checkpoints.saved
    with pytest.raises(DataError) as error:
        checkpoints.finish()
    torch.distributed.barrier()
    checkpoints.save(state(3.0, rank, ranks), manifest(3))
    checkpoints.finish()
    return {
        "succeeded": succeeded,
        "after": after,
        "error": str(error.value),
        "names": checkpoints.storage.names(),
        "one": load(checkpoints, "step-000000001", rank, ranks) == numbers(state(1.0, rank, ranks)),
        "three": load(checkpoints, "step-000000003", rank, ranks) == numbers(state(3.0, rank, ranks)),
    }


@pytest.mark.parametrize(
    "victim, part",
    [(0, "__0_0"), (1, "__1_0"), (0, ".metadata"), (0, disk.MANIFEST), (0, disk.COMMIT)],
)
def test_a_full_disk_costs_one_save_and_every_rank_knows(
    pool: Pool, tmp_path: Path, victim: int, part: str
) -> None:
    for found in pool.run(2, fail_once, tmp_path, victim, part):
        assert not found["succeeded"]
        assert found["after"] == (["step-000000001"], 1, 1)
        assert "the last checkpoint could not be written (" in found["error"]
        assert "No space left on device" in found["error"]
        assert found["error"].endswith("free space and go on from step 1 with --resume")
        assert "\n" not in found["error"]
        assert found["names"] == ["step-000000001", "step-000000003"]
        assert found["one"]
        assert found["three"]


def test_a_run_without_any_checkpoint_goes_on_from_the_start(
    alone: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoints = Checkpoints(tmp_path)
    with full_disk(monkeypatch, ".distcp"):
        checkpoints.save(state(1.0), manifest(1))
        with pytest.raises(DataError, match="go on from the start with --resume"):
            checkpoints.finish()
    told = capfd.readouterr().err
    assert told.startswith(f"note: {tmp_path}/step-000000001: not saved (")
    assert told.endswith("free space, training goes on\n")
    assert told.count("\n") == 1


@pytest.mark.parametrize("error", [TypeError("no such thing"), TimeoutError()])
def test_whatever_a_storage_raises_is_a_save_that_failed(
    alone: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(*arguments: object) -> None:
        raise error

    checkpoints = Checkpoints(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "write", broken)
        checkpoints.save(state(1.0), manifest(1))
        with pytest.raises(DataError, match=str(error) or "TimeoutError"):
            checkpoints.finish()
    checkpoints.save(state(2.0), manifest(2))
    checkpoints.finish()
    assert checkpoints.storage.names() == ["step-000000002"]


def test_old_checkpoints_that_cannot_be_removed_fail_nothing(
    alone: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1, background=False)
    checkpoints.save(state(1.0), manifest(1))
    with monkeypatch.context() as patch:
        patch.setattr(disk, "kept", None)
        checkpoints.save(state(2.0), manifest(2))
    checkpoints.finish()
    assert "note: " in (told := capfd.readouterr().err)
    assert "old checkpoints could not be removed" in told
    assert find(checkpoints.storage, "last") == "step-000000002"


def damaged(rank: int, ranks: int, folder: Path) -> tuple[Any, int | None, list[Any]]:
    """What is found after damage on a disk that all ranks see."""
    checkpoints = Checkpoints(folder, keep=9)
    for step in (1, 2, 3, 4):
        checkpoints.save(state(float(step), rank, ranks), manifest(step, settled=False))
    checkpoints.finish()
    torch.distributed.barrier()
    if rank == 0:
        (folder / "step-000000004" / disk.COMMIT).unlink()
        for name in ("__1_0.distcp", ".metadata"):
            with (folder / "step-000000003" / name).open("ab") as file:
                file.write(b"!")
        (folder / "step-000000002" / disk.MANIFEST).write_text("{}")
    torch.distributed.barrier()
    again = Checkpoints(folder)
    found = again.newest()
    assert found
    return found[1].step, again.saved, load(again, found[0], rank, ranks)


def test_the_newest_complete_one_is_found_and_the_others_are_set_aside(pool: Pool, tmp_path: Path) -> None:
    for rank, (step, saved, content) in enumerate(pool.run(2, damaged, tmp_path)):
        assert (step, saved) == (1, 1)
        assert content == numbers(state(1.0, rank, 2))
    names = ["damaged-step-000000002", "damaged-step-000000003", "step-000000001"]
    assert Storage(tmp_path).names() == names


def test_where_there_is_none_none_is_found(alone: World, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        checkpoints = Checkpoints(folder)
        assert checkpoints.newest() is None
        assert checkpoints.saved is None
        with pytest.raises(DataError, match="holds no complete checkpoint; train first with `sparta train`"):
            find(checkpoints.storage, "last")


def test_a_best_that_is_gone_is_named(alone: World, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, background=False)
    checkpoints.save(state(5.0), manifest(5, best_step=3))
    with pytest.raises(DataError, match="the checkpoint of step 3 is gone; use --checkpoint last"):
        find(checkpoints.storage, "best")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"dense/w": None}, "dense/w is not in the model: it belongs to another job"),
        ({"dense/v": torch.ones(3)}, "dense/v is missing in the saved state: it belongs to another job"),
        ({"optim/step": None}, "optim/step is not in the model: .* or load the weights only"),
    ],
)
def test_another_models_state_is_refused_by_name(
    alone: World, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    checkpoints = Checkpoints(tmp_path, background=False)
    checkpoints.save(state(1.0), manifest(1))
    mine = {name: value for name, value in {**state(0.0), **change}.items() if value is not None}
    with pytest.raises(DataError, match=rf"^{tmp_path}/step-000000001: {words}"):
        checkpoints.load(mine, "step-000000001")


def test_weights_alone_are_read_without_the_rest(alone: World, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, background=False)
    checkpoints.save(state(1.0), manifest(1))
    mine = {name: value for name, value in state(0.0).items() if name.startswith(("tables/", "dense/"))}
    checkpoints.load(mine, "step-000000001", weights_only=True)
    assert numbers(mine) == numbers(state(1.0))[:2]


def test_what_is_loaded_is_compared_with_its_checksums(alone: World, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, background=False)
    checkpoints.save(state(1.0), manifest(1))
    path = tmp_path / "step-000000001" / "__0_0.distcp"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        DataError, match=r"__0_0.distcp does not match its checksum; use another --checkpoint"
    ):
        checkpoints.load(state(0.0), "step-000000001")


def test_the_log_tells_what_saving_has_cost(alone: World, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, background=False)
    assert checkpoints.expected_seconds(state(1.0)) < checkpoints.expected_seconds(state(1.0, rows=10**6))
    for step in (1, 2):
        checkpoints.save(state(float(step)), manifest(step))
    log = checkpoints.log
    on_disk: Manifest = disk.read_manifest(checkpoints.storage, "step-000000002")
    assert (log.saves, log.failures) == (2, 0)
    assert log.bytes == on_disk.bytes == log.bytes_written / 2
    assert log.seconds is not None
    assert checkpoints.expected_seconds(state(1.0)) == log.seconds
    assert log.stall_seconds > 0
    assert on_disk.about["seconds"] <= log.seconds + 1e-3
