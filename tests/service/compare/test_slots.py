"""Processes of a study and Ctrl-C; how they train cells is in test_end_to_end.py and test_worker.py."""

import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sparta.models.errors import ConfigError, DataError, SpartaError
from sparta.service.compare import slots
from sparta.service.compare.cells import Cell, Folder
from sparta.service.compare.run import grids
from sparta.service.compare.slots import _uninterrupted
from tests.service.compare import toys

CODE = "import sys, time; print('up', flush=True); sys.stdin.read(); print('done', flush=True)"


def test_processes_started_meanwhile_never_hear_ctrl_c_and_we_hear_it_after() -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        with _uninterrupted():
            pipe = subprocess.PIPE
            started.append(subprocess.Popen([sys.executable, "-c", CODE], stdin=pipe, stdout=pipe))
            started[0].send_signal(signal.SIGINT)  # while it loads
            # Of this process's threads only this one holds it back.
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        start()
    signal.signal(signal.SIGINT, before)
    with started[0] as process:
        assert process.stdout
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[0] == b"done\n"
        assert process.returncode == 0


def failing(error: Exception, place: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Folder, Cell]:
    """A study whose cells fail with this error, and its first cell."""

    def fails(*_: Any) -> float:
        raise error

    folder = toys.folder(place)
    monkeypatch.setattr(slots, "ProcessPoolExecutor", lambda number, *_, **__: ThreadPoolExecutor(number))
    monkeypatch.setattr(slots, "_run", fails)
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    return folder, grids(folder, toys.whole(folder))[0]


@pytest.mark.parametrize("error", [SpartaError("x"), ConfigError("x"), MemoryError("x")], ids=repr)
def test_a_cell_that_fails_is_handed_over_with_its_name(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cell = failing(error, tmp_path, monkeypatch)
    with slots.slots(folder, 1) as run:
        [(of, found)] = run([cell])
    assert of == cell
    assert type(found) is type(error)
    assert cell.name in "".join([str(found), *getattr(found, "__notes__", [])])


def test_a_slot_that_was_told_to_stop_ends_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, cell = failing(slots.StoppedError("stop"), tmp_path, monkeypatch)
    with pytest.raises(SpartaError, match=f"^{cell.name}: stop$"), slots.slots(folder, 1) as run:
        list(run([cell]))


def test_a_full_disk_is_told_in_one_line_with_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cell = failing(OSError(28, "No space left on device"), tmp_path, monkeypatch)
    with pytest.raises(DataError) as raised, slots.slots(folder, 1) as run:
        list(run([cell]))
    said = f"{cell.name}: {folder.run(cell)}: No space left on device; mend that and run the study again"
    assert str(raised.value) == said


def test_a_file_that_is_not_there_is_a_matter_of_its_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cell = failing(FileNotFoundError(2, "No such file or directory", "part-0"), tmp_path, monkeypatch)
    with slots.slots(folder, 1) as run:
        [(_, found)] = run([cell])
    assert isinstance(found, DataError)
    assert str(found) == f"{cell.name}: part-0: No such file or directory; mend that and run the study again"
