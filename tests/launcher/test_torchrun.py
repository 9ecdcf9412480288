"""The whole tree with the real torchrun: sparta, torchrun, two ranks. Each test starts it once."""

import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from fcntl import ioctl
from pathlib import Path
from types import SimpleNamespace
from typing import Self

import pytest

from sparta.launcher.agent import exit_codes
from tests.launcher.test_cli import PYTHONPATH, drive
from tests.launcher.test_tether import wait_for_end

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

JOB = "{name: fake, data: {path: x}, model: {name: deepfm}, train: {ranks: 2}}"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "pids").mkdir()
    return tmp_path


class Tree:
    """A started `sparta train` and the processes below it."""

    def __init__(self, work: Path, *listens: str, patience: int = 1) -> None:
        self._pids = work / "pids"
        words = ["train", "job.yaml"]
        for step in (*listens, "*:pids:pids", "*:sleep:300"):
            words += ["--do", step]
        # A launcher killed by SIGKILL cannot remove its scratch folder.
        env = {"TMPDIR": str(work), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(patience)}
        self.sparta = subprocess.Popen(
            [sys.executable, "-m", "tests.launcher.drive", *words],
            cwd=work,
            env={**os.environ, "PYTHONPATH": PYTHONPATH, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Tests that run in the background may have been told to ignore Ctrl-C, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sparta.kill()
        self.sparta.communicate()

    def below(self) -> set[int]:
        """Process ids of torchrun and both ranks, once they run."""
        until = time.monotonic() + 60
        while len(pids := {int(path.name) for path in self._pids.iterdir()}) < 3:
            assert time.monotonic() < until
            assert self.sparta.poll() is None
            time.sleep(0.05)
        return pids


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_no_signal_leaves_a_process(work: Path, number: signal.Signals, code: int) -> None:
    # Ranks that do not listen to SIGTERM are killed: the test of SIGTERM has such ranks.
    with Tree(work, *(["*:ignore:SIGTERM"] if number == signal.SIGTERM else [])) as tree:
        pids = tree.below()
        tree.sparta.send_signal(number)
        out, err = tree.sparta.communicate(timeout=60)
        assert (tree.sparta.returncode, out) == (code, "")
        assert err == ("" if number == signal.SIGKILL else "stopping ...\n")
        assert not wait_for_end(pids)


def test_a_run_that_stops_in_order_says_how_to_go_on(work: Path) -> None:
    with Tree(work, "*:stop:120") as tree:
        tree.below()
        tree.sparta.send_signal(signal.SIGINT)
        err = tree.sparta.communicate(timeout=60)[1]
    first, second = err.splitlines()
    assert (tree.sparta.returncode, first) == (130, "stopping ...")
    assert second.startswith("stopped after step 120; go on with: sparta train job.yaml --do ")
    assert second.endswith(" --run-dir runs/fake --resume")


def test_a_second_ctrl_c_kills(work: Path) -> None:
    with Tree(work, "*:ignore:SIGTERM", patience=300) as tree:
        pids = tree.below()
        tree.sparta.send_signal(signal.SIGINT)
        assert tree.sparta.stderr is not None
        assert tree.sparta.stderr.readline() == "stopping ...\n"
        tree.sparta.send_signal(signal.SIGINT)
        err = tree.sparta.communicate(timeout=60)[1]
        assert (tree.sparta.returncode, err) == (130, "killing ...\n")
        assert not wait_for_end(pids)
    # TorchX's own patience of 10 s did not have to end.
    assert "SIGKILL" in (work / "runs/fake/logs/train/torchrun.log").read_text()


def test_torchrun_restarts_the_ranks_where_that_may_help(work: Path) -> None:
    died = ["--do", "0@0:sleep:300", "--do", "1@0:beat:0-7", "--do", "1@0:kill:SIGKILL"]
    refused = ["--do", "*@1:beat:5-9", "--do", "1@1:error:disk full", "--do", "0@1:sleep:300"]
    done = drive("train", "job.yaml", *died, *refused, "--do", "*:print:never", cwd=work)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == (
        "note: rank 1 on node7 was killed by SIGKILL (out of memory?) after step 7; restarted (1 of 3), resuming\n"
        "error: disk full\n"
    )


def test_whom_torchrun_killed_at_the_end_of_its_patience_was_only_told_to_stop() -> None:
    def failure(exitcode: int, timestamp: int) -> SimpleNamespace:
        return SimpleNamespace(exitcode=exitcode, timestamp=timestamp)

    assert exit_codes({0: failure(-9, 40), 1: failure(1, 10)}) == {0: -15, 1: 1}
    assert exit_codes({0: failure(-9, 11), 1: failure(1, 10)}) == {0: -9, 1: 1}


def test_a_rank_killed_without_a_word_is_named(work: Path) -> None:
    done = drive("train", "job.yaml", "--do", "1:kill:SIGKILL", "--do", "0:sleep:300", cwd=work)
    assert (done.returncode, done.stdout) == (137, "")
    assert done.stderr == (
        f"error: rank 1 was killed by SIGKILL (out of memory?); its log is {Path('runs/fake/logs/train/rank-1.log')}\n"
    )
    assert "ChildFailedError" in (work / "runs/fake/logs/train/torchrun.log").read_text()


def test_a_refusal_of_rank_1_is_one_line_and_leaves_no_run(work: Path) -> None:
    done = drive("train", "job.yaml", "--do", "1:error:no column x", "--do", "0:sleep:300", cwd=work)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "error: no column x\n")
    assert list((work / "runs").iterdir()) == []


def test_a_terminal_gets_rank_0_byte_for_byte(work: Path) -> None:
    run = work / "run"
    run.mkdir()
    (run / "job.yaml").write_text(JOB)
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 77, 0, 0))
    words = ["evaluate", "run", "--do", r"0:raw:\r 10%\x1b[K\r 20%\n", "--do", "0:show:SPARTA_TERMINAL"]
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    command = [sys.executable, "-m", "tests.launcher.drive", *words]
    sparta = subprocess.Popen(
        command, cwd=work, env={**env, "PYTHONPATH": PYTHONPATH}, stdout=theirs, stderr=theirs
    )
    shown = b""
    while sparta.poll() is None or select.select([ours], [], [], 0)[0]:
        if select.select([ours], [], [], 0.1)[0]:
            shown += os.read(ours, 1 << 16)
    os.close(ours)
    os.close(theirs)
    # The terminal itself turns "\n" into "\r\n".
    assert (sparta.returncode, shown) == (0, b"\r 10%\x1b[K\r 20%\r\nSPARTA_TERMINAL=77\r\n")
    assert (run / "logs/evaluate/rank-1.log").exists()
