"""One training at a time in a run directory."""

import errno
import fcntl
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sparta.models.errors import ConfigError
from sparta.service import alone
from sparta.service.alone import LOCK, RunLock, check_alone

HOLD = "import sys, time; from pathlib import Path; from sparta.service.alone import RunLock; "
HOLD += "lock = RunLock(Path(sys.argv[1])); lock.take(); print('held', flush=True); time.sleep(600)"


@pytest.fixture
def holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["subprocess.Popen[str]"]:
    """A process that takes the lock of `tmp_path`."""
    monkeypatch.setattr(alone, "MOMENT_SECONDS", 0.0)
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def held(process: "subprocess.Popen[str]") -> None:
    assert process.stdout
    assert process.stdout.readline() == "held\n"


def test_another_process_is_refused_and_named_until_it_has_died(
    tmp_path: Path, holder: "subprocess.Popen[str]"
) -> None:
    held(holder)
    for refused in (RunLock(tmp_path).take, lambda: check_alone(tmp_path)):
        with pytest.raises(ConfigError, match=f"process {holder.pid} on .* is training there; wait for it"):
            refused()
    holder.kill()
    holder.wait()
    check_alone(tmp_path)
    with closing(RunLock(tmp_path)) as lock:
        lock.take()
        lock.take()
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()
    check_alone(tmp_path)


def test_who_looks_is_not_taken_for_who_trains(tmp_path: Path) -> None:
    with (tmp_path / LOCK).open("w") as looking:
        fcntl.flock(looking, fcntl.LOCK_EX)
        timer = threading.Timer(0.3, lambda: fcntl.flock(looking, fcntl.LOCK_UN))
        timer.start()
        with closing(RunLock(tmp_path)) as lock:
            lock.take()
        timer.join()


def test_the_lock_of_another_machine_is_waited_for_and_then_refused(
    tmp_path: Path, holder: "subprocess.Popen[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    held(holder)
    monkeypatch.setattr(alone, "_machine", lambda: "other")
    monkeypatch.setattr(alone, "LEASE_SECONDS", 0.5)
    check_alone(tmp_path)  # it may be dead: who trains waits
    began = time.monotonic()
    with pytest.raises(ConfigError, match="is training there"):
        RunLock(tmp_path).take()
    assert time.monotonic() - began >= 0.5


def test_where_there_are_no_locks_one_trains_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with closing(RunLock(tmp_path)) as lock:
        lock.take()
    RunLock(tmp_path / "not there").take()
    check_alone(tmp_path)


def test_a_disk_that_takes_nothing_is_no_reason_not_to_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alone, "MOMENT_SECONDS", 0.0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with closing(RunLock(tmp_path)) as lock:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
        try:
            lock.take()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert (tmp_path / LOCK).read_bytes() == b""
        with pytest.raises(ConfigError, match="another process is training there"):
            RunLock(tmp_path).take()
