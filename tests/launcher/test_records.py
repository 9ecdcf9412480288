"""Records of local jobs: what they say when processes end, die, or have their numbers taken over."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sparta.launcher.records import PREFIX, Record, born, find, folder, new_id, newest_first
from sparta.models.errors import ConfigError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def process() -> Iterator["subprocess.Popen[bytes]"]:
    started = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield started
    started.kill()
    started.communicate()


def record(process: "subprocess.Popen[bytes] | None" = None, **fields: object) -> Record:
    made = Record(new_id("a"), "train", ("job.yaml", "--set", "x=1"), "/r", "/w", "m", started=1.5)
    if process:
        made = replace(made, pid=process.pid, born=born(process.pid))
    return replace(made, **fields)  # type: ignore[arg-type]


def test_what_is_saved_is_found_by_its_handle_and_its_id() -> None:
    made = record(pid=3, born="x", exit_code=4)
    made.save()
    assert made.handle.startswith(PREFIX)
    assert find(made.handle) == find(made.id) == made


def test_a_job_runs_until_its_process_ends(process: "subprocess.Popen[bytes]") -> None:
    made = record(process)
    made.save()
    assert made.state() == "RUNNING"
    process.kill()
    # It is dead though nobody has asked for its exit code.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert made.state() == "FAILED"
    process.wait()
    assert made.state() == "FAILED"


def test_another_process_with_its_number_is_not_the_job(process: "subprocess.Popen[bytes]") -> None:
    made = record(process, born=born(os.getpid()))
    made.save()
    assert born(os.getpid()) != born(process.pid) != ""
    assert made.state() == "FAILED"


def test_an_exit_code_that_was_written_since_is_seen(process: "subprocess.Popen[bytes]") -> None:
    old = record(process)
    process.kill()
    process.wait()
    replace(old, exit_code=0).save()
    assert old.state() == "SUCCEEDED"


@pytest.mark.parametrize(
    "code, state",
    [(0, "SUCCEEDED"), (1, "FAILED"), (3, "FAILED"), (137, "FAILED"), (130, "CANCELLED"), (143, "CANCELLED")],
)
def test_an_exit_code_is_a_state(code: int, state: str) -> None:
    assert record(exit_code=code).state() == state


@pytest.mark.parametrize("handle", ["nix", f"{PREFIX}nix", "../a", f"{PREFIX}../a", "slurm://sparta/1", ""])
def test_what_is_no_job_is_refused_in_one_line(handle: str, state: Path) -> None:
    folder().mkdir(parents=True)
    (folder().parent / "a.json").write_text("{}")
    with pytest.raises(ConfigError, match="no local job of that name; `sparta list` shows them"):
        find(handle)


def test_newest_first_without_what_is_no_record() -> None:
    for second in (2.0, 3.0, 1.0):
        record(started=second).save()
    (folder() / "torn.json").write_text(json.dumps({"id": "torn"})[:-3])
    (folder() / "other.json").write_text("[]")
    assert [one.started for one in newest_first()] == [3.0, 2.0, 1.0]


def test_nobody_sees_half_a_record() -> None:
    made = record()
    made.save()
    inode = made.path.stat().st_ino
    made.save()
    assert made.path.stat().st_ino != inode  # another file in its place
    assert [path.name for path in folder().iterdir()] == [f"{made.id}.json"]


def test_a_folder_that_cannot_be_written_is_named(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (state / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(state / "file"))
    with pytest.raises(ConfigError, match=r"file/sparta/jobs: cannot be written .*; set XDG_STATE_HOME"):
        record().save()
