"""A tethered process dies with its parent, whatever killed that."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")

CHILD = "import signal, time; from sparta.launcher.tether import tether; tether(signal.SIGKILL); print(flush=True); "
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for_end(pids: set[int], seconds: float = 15.0) -> set[int]:
    """Those of the processes that still run when the time is up."""
    until = time.monotonic() + seconds
    while (left := {pid for pid in pids if alive(pid)}) and time.monotonic() < until:
        time.sleep(0.02)
    return left


def test_a_killed_parent_takes_its_child_along() -> None:
    command = [sys.executable, "-c", PARENT, CHILD + "time.sleep(60)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.kill()
    assert not wait_for_end({child})


def test_the_tether_outlives_exec() -> None:
    becomes_sleep = CHILD + "import os; os.execvp('sleep', ['sleep', '60'])"
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, becomes_sleep], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    assert not wait_for_end({child})


def test_a_child_that_comes_too_late_ends_at_once() -> None:
    env = {**os.environ, "SPARTA_PARENT_PID": "1"}
    if os.getpid() == 1:
        pytest.skip("the test runner is process 1 itself")
    assert (
        subprocess.run([sys.executable, "-c", CHILD + "time.sleep(60)"], env=env, timeout=30).returncode == -9
    )
