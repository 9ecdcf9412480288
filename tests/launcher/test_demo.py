"""The demo is what a newcomer would type."""

import shlex
import signal
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from sparta.launcher import demo as module
from sparta.launcher.cli import VERBS
from sparta.launcher.demo import ROWS, commands, demo, sparta
from sparta.service.config import load_job

JOB = Path(str(files("sparta.launcher") / "jobs" / "demo.yaml"))


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_job_is_valid_and_reads_what_the_demo_makes(work: Path) -> None:
    job = load_job(JOB)
    assert (job.model.name, job.train.ranks) == ("deepfm", 2)
    assert Path(job.data.path) == work / "data" / "demo"


def test_each_command_reads_what_the_one_before_wrote() -> None:
    synth, prepare, train = commands(ROWS, Path("data/demo"), JOB)
    raw = synth[synth.index("--out") + 1]
    assert prepare[1].startswith(f"{raw}/")
    assert prepare[prepare.index("--out") + 1] == "data/demo"
    assert train == ["train", str(JOB)]
    assert {synth[0], prepare[0], train[0]} <= set(VERBS)


def test_other_rows_are_other_data() -> None:
    *_, train = commands(10, Path("data/demo-10"), JOB)
    assert train[2:] == ["--set", "data.path=data/demo-10"]


def test_complete_data_is_used_again() -> None:
    data = Path("data/demo")
    data.mkdir(parents=True)
    assert len(commands(ROWS, data, JOB)) == 3
    (data / "schema.json").touch()
    assert [command[0] for command in commands(ROWS, data, JOB)] == ["train"]


def test_every_command_is_shown_before_it_runs_and_a_failure_ends_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[list[str]] = []

    def run(command: list[str]) -> int:
        assert capsys.readouterr().out.splitlines()[-1] == f"$ {shlex.join(['sparta', *command])}"
        ran.append(command)
        return 3 if command[0] == "prepare" else 0

    monkeypatch.setattr(module, "sparta", run)
    assert demo(["--rows", "10"]) == 3
    assert [command[0] for command in ran] == ["synth", "prepare"]


def test_the_end_names_the_run_and_what_to_try(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(command: list[str]) -> int:
        if command[0] == "train":
            Path("runs/demo-2").mkdir()
        return 0

    Path("runs/demo").mkdir(parents=True)
    monkeypatch.setattr(module, "sparta", run)
    assert demo([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "The run is in runs/demo-2. What to try next:" in lines
    steps = [line.split() for line in lines if line.startswith("  sparta ")]
    assert len(steps) == 3
    assert all(step[1] in VERBS and "runs/demo-2" in step[2] for step in steps)


def test_a_commands_code_is_passed_on() -> None:
    before = signal.getsignal(signal.SIGINT)
    assert sparta(["no-such-verb"]) == 2
    assert signal.getsignal(signal.SIGINT) == before


def test_a_signal_to_the_demo_reaches_its_command(monkeypatch: pytest.MonkeyPatch, work: Path) -> None:
    waits = work / "waits"
    waits.write_text("#!/bin/sh\nkill -TERM $PPID\nexec sleep 60\n")
    waits.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(waits))
    assert sparta(["train"]) == 143
