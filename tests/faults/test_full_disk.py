"""A disk that is really full: a small tmpfs of this test's own, filled to the last byte in the middle of a save."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import harness

MOUNT = 'mount -t tmpfs -o size=8m tmpfs "$1" && exec "$2" -m tests.faults.small_disk "$3" "$1" "$4"'


def may_mount(folder: Path) -> bool:
    command = ["unshare", "--mount", "--map-root-user", "mount", "-t", "tmpfs", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_full_disk_costs_one_save_and_nothing_else(job: Path, unkilled: Path, tmp_path: Path) -> None:
    if not may_mount(tmp_path):
        pytest.skip("no unprivileged mounts here: the disk cannot be filled")
    words = ["sh", str(tmp_path), sys.executable, str(job), "3"]
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", MOUNT, *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["codes"] == [0, 0], found["said"]
    assert "not saved (" in found["said"]
    assert "No space left on device" in found["said"]
    assert found["failed"] == 1
    assert set(found["states"].values()) == {"complete"}
    assert found["digests"] == harness.digests(unkilled)
