"""torchrun on a machine of a cluster: its exit code is the ranks', and refusals are not tried again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparta.launcher.node import REFUSED, endpoint, exit_code
from tests.launcher.test_cli import PYTHONPATH

CODES = st.dictionaries(st.integers(0, 7), st.integers(-15, 255).filter(bool), min_size=1)


@given(codes=CODES)
def test_a_machines_code_is_that_of_one_of_its_ranks(codes: dict[int, int]) -> None:
    assert exit_code(codes) in {code if code > 0 else 128 - code for code in codes.values()}


@given(codes=CODES, rank=st.integers(0, 7), refusal=st.sampled_from(sorted(REFUSED)))
def test_a_refusal_is_heard_above_all_else(codes: dict[int, int], rank: int, refusal: int) -> None:
    assert exit_code({**codes, rank: refusal}) in REFUSED


def test_whoever_was_only_told_to_stop_is_not_the_reason() -> None:
    assert exit_code({0: -signal.SIGTERM, 1: -signal.SIGKILL, 2: -signal.SIGABRT}) == 137
    assert exit_code({0: -signal.SIGTERM, 1: 1}) == 1
    assert exit_code({0: -signal.SIGTERM}) == 143


def test_the_first_machine_is_the_one_that_a_variable_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRST", "job-0.job")
    assert endpoint("env:FIRST:29500") == "job-0.job:29500"
    monkeypatch.setenv("FIRST", "")
    assert endpoint("env:FIRST:29500") == "localhost:29500"
    monkeypatch.delenv("FIRST")
    assert endpoint("env:FIRST:29500") == "localhost:29500"
    assert endpoint("host:1") == "host:1"


class Node:
    """A started machine with two ranks of the fake service."""

    def __init__(self, *script: str, restarts: int = 2) -> None:
        words = ["--nnodes", "1:1", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-id", "test"]
        words += ["--rdzv-endpoint", "env:NOWHERE:0", "--max-restarts", str(restarts), "--tee", "3"]
        words += ["-m", "tests.launcher.fake_service", *(word for step in script for word in ("--do", step))]
        env = {"PYTHONPATH": PYTHONPATH, "LOGLEVEL": "ERROR", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "1"}
        env |= {"TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE": "[${rank}] ", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sparta.launcher.node", *words],
            env={**os.environ, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self) -> tuple[int, str]:
        """Exit code and standard output."""
        try:
            out, _ = self.process.communicate(timeout=120)
        finally:
            self.process.kill()
        return self.process.returncode, out


def test_all_ranks_print_with_their_number_and_a_failure_is_tried_again() -> None:
    code, out = Node("*:print:hello", "0@0:sleep:30", "1@0:exit:7", "*@1:print:again").end()
    lines = out.splitlines()
    assert (code, set(lines)) == (0, {"[0] hello", "[0] again", "[1] hello", "[1] again"})
    assert lines.count("[1] hello") == 2


def test_a_refusal_is_not_tried_again_and_is_the_exit_code() -> None:
    code, out = Node("1:print:hello", "0:sleep:30", "1:error:no column x").end()
    assert (code, out) == (3, "[1] hello\n")


def test_a_machine_that_is_told_to_stop_tells_its_ranks(tmp_path: Path) -> None:
    node = Node(f"*:pids:{tmp_path}", "*:ignore:SIGINT", "*:sleep:300")
    until = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 3:
        assert time.monotonic() < until
        time.sleep(0.05)
    node.process.send_signal(signal.SIGTERM)
    assert node.end()[0] == 143
