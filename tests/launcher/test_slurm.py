"""`-s slurm`: the script that TorchX renders, run; Slurm's commands are fakes (fake_slurm.py)."""

import json
import os
import sys
from pathlib import Path

import pytest

from sparta.launcher.cli import main
from tests.launcher import fake_slurm
from tests.launcher.test_cli import PYTHONPATH, drive, modules_after
from tests.launcher.test_tether import wait_for_end

JOB = "{name: fake, data: {path: nowhere}, model: {name: deepfm}, train: {ranks: 2}}"
HANDLE = "slurm://sparta/17"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a job, and Slurm's commands in the PATH."""
    (tmp_path / "job.yaml").write_text(JOB)
    commands = tmp_path / "slurm"
    commands.mkdir()
    for name in ("sbatch", "srun", "sacct", "scancel"):
        script = f"#!{sys.executable}\n" + Path(fake_slurm.__file__).read_text()
        (commands / name).write_text(script)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(commands))
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_dry_run_prints_the_script_and_nothing_else(work: Path) -> None:
    done = drive(
        "submit",
        "job.yaml",
        "-s",
        "slurm",
        "--nodes",
        "2",
        "--cfg",
        "partition=p,time=1",
        "--dry-run",
        cwd=work,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "#!/bin/bash"
    jobs = [line for line in lines if line.startswith("#SBATCH --job-name")]
    assert len(jobs) == 2
    assert all("--partition=p" in line and "--time=1" in line for line in jobs)
    assert not (work / "runs").exists()


def test_a_dry_run_loads_no_torch(work: Path) -> None:
    words = ["submit", "job.yaml", "-s", "slurm", "--dry-run"]
    loaded = modules_after(f"from sparta.launcher.cli import main; main({words})")
    assert "torchx.runner" in loaded
    assert not loaded & {"torch", "numpy", "pyarrow"}


@pytest.mark.slow
def test_a_job_is_submitted_followed_and_looked_at(work: Path) -> None:
    """The job is refused by its ranks: the text and its overrides have arrived, and the exit code comes back."""
    odd = "a, b 'c' \"d\" $HOME ${rank0_env} \\n"
    done = drive(
        *("submit", "job.yaml", "-s", "slurm", "--env", f"ODD={odd}", "--wait"),
        *("--set", f"data.path=nowhere/{json.dumps('a,b')}"),
        cwd=work,
    )
    assert (done.returncode, done.stderr) == (1, f"{HANDLE}\n")
    assert done.stdout.startswith("[0] error: ")
    assert 'nowhere/"a,b"' in done.stdout
    assert int((work / "slurm" / "code").read_text()) == 3
    assert drive("list", "-s", "slurm", cwd=work).stdout == f"{HANDLE}  FAILED\n"
    status = drive("status", HANDLE, "--exit-code", cwd=work)
    assert status.returncode == 1
    assert "FAILED" in status.stdout
    logs = drive("logs", HANDLE, "--rank", "1", cwd=work).stdout.splitlines()
    assert {line.partition(" ")[0] for line in logs} <= {"[1]"}
    assert drive("cancel", HANDLE, cwd=work).stdout == f"{HANDLE} FAILED\n"
    assert drive("logs", "slurm://sparta/18", cwd=work).returncode == 2


def test_a_run_that_is_there_stays_what_it_is(work: Path) -> None:
    for name in ("fake", "fake-2"):
        assert drive("submit", "job.yaml", "-s", "slurm", cwd=work).returncode == 0
        assert f" --run-dir runs/{name} " in (work / "slurm" / "script").read_text()
        assert (work / "runs" / name).is_dir()
        drive("cancel", HANDLE, cwd=work)
    refused = drive("submit", "job.yaml", "-s", "slurm", "--resource", "x", cwd=work)
    assert refused.returncode == 2
    assert not (work / "runs" / "fake-3").exists()


def test_a_job_is_cancelled(work: Path) -> None:
    done = drive("submit", "job.yaml", "-s", "slurm", cwd=work)
    assert (done.returncode, done.stdout) == (0, f"{HANDLE}\n")
    group = int((work / "slurm" / "pid").read_text())
    assert drive("cancel", HANDLE, cwd=work).stdout == f"{HANDLE} CANCELLED\n"
    assert not wait_for_end({group})


@pytest.mark.parametrize(
    "words, said",
    [
        (
            ["submit", "job.yaml", "-s", "slurm", "--cfg", "partion=p"],
            "--cfg partion: unknown to slurm; it knows partition, ",
        ),
        (
            ["submit", "job.yaml", "-s", "slurm", "--cfg", "partition"],
            "--cfg partition: not of the form key=value",
        ),
        (["submit", "job.yaml", "-s", "slurm", "--image", "a"], "--image, --mount: slurm runs no containers"),
        (["submit", "job.yaml", "-s", "slurm", "--env", "A"], "--env A: not of the form NAME=VALUE"),
        (["submit", "job.yaml", "-s", "slurm", "--resource", "x"], "x: no named resource"),
        (
            ["submit", "job.yaml", "-s", "slurm", "--nodes", "two"],
            "argument --nodes: 'two' is no number of machines",
        ),
        (
            ["status", "slurm://sparta/18"],
            "slurm://sparta/18: no such job; `sparta list -s slurm` shows them",
        ),
        (["status", "slurm://sparta/a:b"], "slurm://sparta/a:b: no handle"),
        (["status", "pbs://sparta/1"], "pbs://sparta/1: no handle"),
        (["status", "kueue://sparta/1"], "kueue://sparta/1: no handle"),
    ],
)
def test_mistakes_are_one_line(
    work: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {said}")
    assert err.count("\n") == 1


def test_without_slurm_the_missing_command_is_named(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    for words, command in [
        (["submit", "job.yaml", "-s", "slurm"], "sbatch"),
        (["list", "-s", "slurm"], "sacct"),
    ]:
        assert main(words) == 2
        said = f"error: slurm: no {command} in the PATH; submit where the scheduler's commands are\n"
        assert capsys.readouterr() == ("", said)
