"""Local jobs that are submitted: they outlive the shell, and any other shell finds, follows and stops them."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from sparta.launcher.cli import main
from sparta.models.schema import Feature, Schema
from tests.launcher.test_cli import PYTHONPATH, drive
from tests.launcher.test_tether import wait_for_end

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

JOB = "{name: fake, data: {path: x}, model: {name: deepfm}, train: {ranks: 2}}"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "pids").mkdir()
    (tmp_path / "x").mkdir()
    Schema(sparse=(Feature(name="C1", rows=9),), labels=("y",), splits={"train": 9}).save(tmp_path / "x")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "1")
    yield tmp_path
    for path in (tmp_path / "state/sparta/jobs").glob("*.json"):
        drive("cancel", path.stem, cwd=tmp_path)


def submit(work: Path, *script: str, options: tuple[str, ...] = ()) -> str:
    """Submit a job whose ranks follow the script; its handle."""
    done = drive("submit", "job.yaml", *options, "--", *steps(script), cwd=work)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"local_cwd://sparta/fake-[0-9a-f]+\n", done.stdout)
    return done.stdout.strip()


def steps(script: tuple[str, ...]) -> list[str]:
    return [word for step in script for word in ("--do", step)]


def status(work: Path, handle: str) -> dict[str, object]:
    done = drive("status", handle, "--json", cwd=work)
    assert (done.returncode, done.stderr) == (0, "")
    said: dict[str, object] = json.loads(done.stdout)
    return said


def until(true: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for something to be true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def pids(work: Path) -> set[int]:
    return {int(path.name) for path in (work / "pids").iterdir()}


def test_a_job_is_found_followed_and_cancelled_from_other_shells(work: Path) -> None:
    script = ("*:beat:3-5", "*:warn:hello", "0:print:result", "*:stop:7", "*:pids:pids", "*:sleep:300")
    handle = submit(work, *script)
    until(lambda: len(pids(work)) == 3)
    elsewhere = work / "elsewhere"
    elsewhere.mkdir()
    said = status(elsewhere, handle)
    assert (said["handle"], said["state"], said["step"], said["exit_code"]) == (handle, "RUNNING", 5, None)
    assert said["run"] == str(work / "runs" / "fake")
    assert drive("status", handle, "--exit-code", cwd=elsewhere).returncode == 255
    logs = drive("logs", handle, cwd=elsewhere)
    assert (logs.returncode, sorted(logs.stdout.splitlines())) == (
        0,
        ["[0] hello", "[0] result", "[1] hello"],
    )
    assert drive("logs", handle, "--rank", "1", cwd=elsewhere).stdout == "[1] hello\n"
    assert (
        drive("logs", handle, "--rank", "2", cwd=work).stderr == "error: --rank 2: the job has ranks 0 to 1\n"
    )

    done = drive("cancel", handle, cwd=elsewhere)
    assert (done.returncode, done.stdout) == (0, f"{handle} CANCELLED\n")
    assert not wait_for_end({*pids(work), int(str(said["pid"]))})
    assert (work / "runs" / "fake" / "STOPPED").exists()
    said = status(elsewhere, handle)
    assert (said["state"], said["exit_code"], said["pid"]) == ("CANCELLED", 143, None)
    assert str(said["said"]).startswith(
        "stopped after step 7; go on with: sparta train job.yaml --run-dir runs/fake"
    )
    assert drive("cancel", handle, cwd=work).stdout == f"{handle} CANCELLED already\n"


def test_following_ends_with_the_job_and_misses_nothing(work: Path) -> None:
    handle = submit(work, "*:print:first", "*:sleep:1", r"1:raw:\r 10%\r 20%", "*:sleep:1", "0:warn:last")
    done = drive("logs", handle, "--follow", cwd=work)
    assert done.returncode == 0
    assert sorted(done.stdout.splitlines()) == ["[0] first", "[0] last", "[1]  20%", "[1] first"]
    assert done.stderr == f"{handle} SUCCEEDED\n"
    assert drive("status", handle, "--exit-code", cwd=work).returncode == 0


def test_why_the_ranks_were_started_again_is_in_the_logs_and_the_number_in_the_status(work: Path) -> None:
    handle = submit(work, "1@0:beat:0-1", "1@0:kill:SIGKILL", "0@0:sleep:60", "*:print:done")
    done = drive("logs", handle, "--follow", cwd=work)
    (note,) = [line for line in done.stdout.splitlines() if line.startswith("[all] ")]
    assert note.startswith("[all] note: rank 1 on ")
    assert "killed by SIGKILL" in note
    assert note.endswith("restarted (1 of 3), resuming")
    assert status(work, handle)["restarts"] == 1
    assert "[all]" not in drive("logs", handle, "--rank", "1", cwd=work).stdout


def test_jobs_are_listed_newest_first(work: Path) -> None:
    failing = submit(work, "1:error:no column x")
    until(lambda: status(work, failing)["state"] != "RUNNING")
    running = submit(work, "*:sleep:300")
    rows = [line.split() for line in drive("list", cwd=work).stdout.splitlines()]
    assert [row[:2] for row in rows] == [[running, "RUNNING"], [failing, "FAILED"]]
    assert [row[-1] for row in rows] == [str(work / "runs" / name) for name in ("fake-2", "fake")]
    said = status(work, failing)
    assert (said["exit_code"], said["said"]) == (3, "error: no column x")
    assert drive("status", failing, "--exit-code", cwd=work).returncode == 3


def test_waiting_is_training(work: Path) -> None:
    """The same output, at the same places, and the same exit code."""
    script = ("0:print:result", "0:warn:hello", "0:error:no column x", "1:sleep:60")
    waited = drive("submit", "job.yaml", "--wait", "--", *steps(script), cwd=work)
    trained = drive("train", "job.yaml", *steps(script), cwd=work)
    handle, _, messages = waited.stderr.partition("\n")
    assert handle.startswith("local_cwd://sparta/fake-")
    assert (waited.returncode, waited.stdout, messages) == (
        trained.returncode,
        trained.stdout,
        trained.stderr,
    )
    assert (trained.returncode, trained.stdout) == (3, "result\n")


def waiting(work: Path, *script: str) -> "subprocess.Popen[str]":
    """A shell that waits for its job."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.launcher.drive", "submit", "job.yaml", "--wait", "--", *steps(script)],
        cwd=work,
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_ctrl_c_stops_the_job_in_order(work: Path) -> None:
    shell = waiting(work, "*:stop:7", "*:pids:pids", "*:sleep:300")
    until(lambda: len(pids(work)) == 3)
    shell.send_signal(signal.SIGINT)
    out, err = shell.communicate(timeout=60)
    assert (shell.returncode, out) == (143, "")
    assert "stopped after step 7; go on with: sparta train" in err
    assert not wait_for_end(pids(work))


def test_a_second_ctrl_c_kills_the_ranks(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "300")
    shell = waiting(work, "*:ignore:SIGTERM", "*:pids:pids", "*:sleep:300")
    until(lambda: len(pids(work)) == 3)
    shell.send_signal(signal.SIGINT)
    assert shell.stderr is not None
    while "stopping" not in shell.stderr.readline():
        pass
    shell.send_signal(signal.SIGINT)
    assert not wait_for_end(pids(work))
    assert "killing" in shell.communicate(timeout=60)[1]
    assert shell.returncode == 143


def test_a_shell_that_is_killed_leaves_its_job_alone(work: Path) -> None:
    shell = waiting(work, "*:pids:pids", "*:sleep:300")
    until(lambda: len(pids(work)) == 3)
    shell.kill()
    _, err = shell.communicate()
    handle = err.splitlines()[0]
    assert status(work, handle)["state"] == "RUNNING"
    pid = int(str(status(work, handle)["pid"]))
    os.kill(pid, signal.SIGKILL)
    assert not wait_for_end({pid, *pids(work)})
    said = status(work, handle)
    assert (said["state"], said["exit_code"]) == ("FAILED", 137)
    assert str(said["said"]).startswith(
        "killed with all its ranks, as by SIGKILL; go on with: sparta train job.yaml "
    )
    assert str(said["said"]).endswith(" --resume")


def test_a_job_is_stopped_even_before_it_has_ranks(work: Path) -> None:
    handle = submit(work, "*:pids:pids", "*:sleep:300")
    assert drive("cancel", handle, cwd=work).stdout == f"{handle} CANCELLED\n"
    assert not wait_for_end(pids(work))


def test_a_waiting_shell_on_a_terminal_tells_the_ranks_how_wide_it_is(work: Path) -> None:
    main_end, its_end = pty.openpty()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.launcher.drive", "submit", "job.yaml", "--wait", "--"),
            *steps(("0:show:SPARTA_TERMINAL",)),
        ],
        cwd=work,
        env={**os.environ, "PYTHONPATH": PYTHONPATH, "COLUMNS": "77"},
        stdout=subprocess.PIPE,
        stderr=its_end,
        timeout=60,
    )
    os.close(its_end)
    os.close(main_end)
    assert (done.returncode, done.stdout) == (0, b"SPARTA_TERMINAL=77\n")


def test_a_dry_run_says_what_would_be_run_and_makes_nothing(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(work)
    words = [
        "submit",
        "job.yaml",
        "--ranks",
        "3",
        "--set",
        "train.epochs=2",
        "--dry-run",
        "--",
        "--from",
        "a b",
    ]
    (work / "a b").mkdir()
    assert main(words) == 0
    said = yaml.safe_load(capsys.readouterr().out)
    train = ["train", "job.yaml", "--run-dir", "runs/fake", "--set", "train.epochs=2", "--ranks", "3"]
    assert said["command"] == [sys.executable, "-m", "sparta.launcher", *train, "--from", "a b"]
    assert (said["ranks"], said["run"]) == (3, "runs/fake")
    assert sorted(path.name for path in work.iterdir()) == ["a b", "job.yaml", "pids", "x"]
    (work / "runs" / "fake").mkdir(parents=True)
    assert main(words) == 0
    assert yaml.safe_load(capsys.readouterr().out)["run"] == "runs/fake-2"


@pytest.mark.parametrize(
    "words, said",
    [
        (["submit"], "the following arguments are required: job; see `sparta submit --help`"),
        (["submit", "nowhere.yaml"], "nowhere.yaml: No such file"),
        (["submit", "job.yaml", "--set", "modell=1"], "modell: unknown key"),
        (["submit", "job.yaml", "--nodes", "2"], "--nodes 2: local_cwd has one machine"),
        (["submit", "job.yaml", "--image", "a"], "--image: local_cwd runs on this machine"),
        (["submit", "job.yaml", "--resume"], "--resume needs --run-dir"),
        (["submit", "job.yaml", "--ranks", "0"], "argument --ranks: '0' is no whole number above 0"),
        (["submit", "job.yaml", "--ranks", "90000"], "90000 ranks take 35156 GiB before they hold a row"),
        (
            ["submit", "job.yaml", "--", "--frm", "a"],
            "unrecognized arguments: --frm a",
        ),
        (["submit", "job.yaml", "--", "--from", "nix"], "--from nix: no such run"),
        (["submit", "job.yaml", "--dry-run", "--", "--from", "nix"], "--from nix: no such run"),
        (["submit", "job.yaml", "-s", "cron"], "argument -s/--scheduler: invalid choice: 'cron'"),
        (["submit", "job.yaml", "--run-dir", "held"], "held: already holds a run"),
        (["status", "nix"], "nix: no local job of that name; `sparta list` shows them"),
        (["logs", "nix", "--rank", "-1"], "argument --rank: "),
        (["cancel", "local_cwd://sparta/nix"], "local_cwd://sparta/nix: no local job"),
    ],
)
def test_mistakes_are_one_line(
    work: Path,
    words: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(work)
    (work / "held").mkdir()
    (work / "held" / "job.yaml").write_text(JOB)
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1
    assert not (work / "state").exists()
    assert not (work / "runs").exists()


def test_a_missing_dataset_is_told_before_anything_is_made(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(work)
    assert main(["submit", "job.yaml", "--set", "data.path=nowhere"]) == 3
    assert "nowhere" in capsys.readouterr().err
    assert not (work / "state").exists()
    assert not (work / "runs").exists()


def test_no_jobs_are_no_error(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert capsys.readouterr() == ("", "no jobs on local_cwd\n")
