"""The same with all that users start: `sparta train`, TorchX, torchrun, two ranks, which it starts again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sparta.service.heartbeat import read_beats
from tests.faults import harness

MAIN = "import sys; from sparta.launcher.cli import main; sys.exit(main())"


def sparta(*words: object) -> subprocess.Popen[str]:
    """A started `sparta`."""
    return subprocess.Popen(
        [sys.executable, "-c", MAIN, *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "5"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def reach(run: Path, rank: int, step: int, seconds: float = 90.0) -> int:
    """Wait until a rank has finished a step; its process."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        beat = read_beats(run / "logs" / "train", 2).get(rank, {})
        if beat.get("phase") == "step" and beat["step"] >= step:
            return int(beat["pid"])
        time.sleep(0.002)
    raise AssertionError(f"rank {rank} did not reach step {step}")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_dies_or_stops_is_named_and_all_start_again_by_themselves(
    job: Path, unkilled: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    started = sparta("train", job, "--run-dir", run, "--set", "tolerate.stuck_seconds=3")
    os.kill(reach(run, 1, 5), number)
    _, err = started.communicate(timeout=120)
    assert started.returncode == 0, err
    told = [line for line in err.splitlines() if line.startswith("note: rank 1 on ")]
    assert len(told) == 1, err
    assert "after step " in told[0]
    assert ("SIGKILL" if number == signal.SIGKILL else "no progress for 3 s") in told[0]
    assert told[0].endswith("restarted (1 of 3), resuming")
    assert harness.digests(run) == harness.digests(unkilled)


@pytest.mark.parametrize("whole", [False, True], ids=["one rank", "the launcher"])
def test_sigterm_ends_a_run_in_time_and_resume_goes_on(
    job: Path, unkilled: Path, tmp_path: Path, whole: bool
) -> None:
    run = tmp_path / "run"
    started = sparta("train", job, "--run-dir", run)
    rank = reach(run, 1, 4)
    os.kill(started.pid if whole else rank, signal.SIGTERM)
    _, err = started.communicate(timeout=60)
    assert started.returncode == 143, err
    marker = json.loads((run / "STOPPED").read_text())
    assert marker["checkpoint"] == marker["step"]
    line = err.splitlines()[-1]
    assert line.startswith(f"stopped after step {marker['step']}; go on with: sparta train ")
    again = sparta(*line.partition("sparta ")[2].split())
    _, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert f"going on after step {marker['step']}" in err
    assert not (run / "STOPPED").exists()
    assert harness.digests(run) == harness.digests(unkilled)


def test_a_finished_run_that_is_resumed_comes_to_the_same_result(
    job: Path, unkilled: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(unkilled, run)
    before = harness.digests(run)
    (run / "result.json").unlink()
    again = sparta("train", job, "--run-dir", run, "--resume")
    _, err = again.communicate(timeout=60)
    assert again.returncode == 0, err
    assert harness.digests(run) == before
