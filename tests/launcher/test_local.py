"""One job on this machine, its ranks real processes, torchrun replaced by a fake that starts at once."""

import os
import re
from pathlib import Path

import pytest

from sparta.launcher.local import LocalJob, Outcome, run
from sparta.launcher.stopped import Stopped


class Bench:
    """Runs jobs of the fake service and remembers what the user's terminal got."""

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.run_directory = folder / "run"
        self.logs = self.run_directory / "logs" / "train"
        self.logs.mkdir(parents=True)
        self._capfd = capfd

    def job(self, *script: str, ranks: int = 2, verbose: bool = False, restarts: int = 0) -> LocalJob:
        """A job whose ranks follow the script."""
        words = tuple(word for step in script for word in ("--do", step))
        return LocalJob(
            name="train",
            ranks=ranks,
            module="tests.launcher.fake_service",
            arguments=words,
            logs=self.logs,
            verbose=verbose,
            restarts=restarts,
            agent="tests.launcher.fake_agent",
        )

    def run(
        self, *script: str, ranks: int = 2, verbose: bool = False, restarts: int = 0
    ) -> tuple[Outcome, str, str]:
        """The outcome, and what was shown on stdout and stderr."""
        outcome = run(self.job(*script, ranks=ranks, verbose=verbose, restarts=restarts))
        return outcome, *self._capfd.readouterr()


@pytest.fixture
def bench(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.chdir(Path(__file__).parents[2])  # where the ranks find the fake service
    return Bench(tmp_path, capfd)


def test_rank_0_is_shown_and_every_rank_is_logged(bench: Bench) -> None:
    outcome, out, err = bench.run("*:warn:hello", "*:print:result", "1:warn:from rank 1")
    assert (outcome, out, err) == (Outcome(0), "result\n", "hello\n")
    assert (bench.logs / "rank-0.log").read_text() == "hello\n"
    assert (bench.logs / "rank-0.out").read_text() == "result\n"
    assert (bench.logs / "rank-1.log").read_text() == "hello\nresult\nfrom rank 1\n"


def test_raw_bytes_arrive_as_they_are(bench: Bench) -> None:
    assert bench.run(r"0:raw:\r 10%\x1b[K\r 20%\n\tdone")[2] == "\r 10%\x1b[K\r 20%\n\tdone"


def test_arguments_arrive_untouched(bench: Bench) -> None:
    out = bench.run("0:arguments", "-:*", "-:$HOME ${app_id} $$ a  b")[1]
    assert out == f"{list(bench.job('0:arguments', '-:*', '-:$HOME ${app_id} $$ a  b').arguments)}\n"


def test_an_error_of_all_ranks_is_one_line(bench: Bench) -> None:
    outcome, out, err = bench.run("*:print:hello", "*:error:no column x")
    assert (outcome.code, out, err) == (3, "hello\n", "error: no column x\n")


def test_a_crash_is_one_line_and_its_traceback_stays_in_the_log(bench: Bench) -> None:
    outcome, out, err = bench.run("0:print:hello", "0:crash:boom", "1:sleep:60")
    log = bench.logs / "rank-0.log"
    assert (outcome.code, out) == (1, "hello\n")
    assert err == f"error: rank 0 stopped with exit code 1 (RuntimeError: boom); its log is {log}\n"
    assert "Traceback" in log.read_text()


@pytest.mark.parametrize("rank", [0, 1])
def test_verbose_shows_the_traceback_of_any_rank(bench: Bench, rank: int) -> None:
    _, out, err = bench.run(f"{rank}:crash:boom", "*:sleep:60", verbose=True)
    assert "Traceback" in err
    assert out == ""
    assert err.splitlines()[-1].startswith(f"error: rank {rank} stopped with exit code 1")


def test_earlier_logs_stay_and_do_not_speak(bench: Bench) -> None:
    bench.run("*:error:the first")
    outcome, out, err = bench.run("0:warn:hello")
    assert (outcome, out, err) == (Outcome(0), "", "hello\n")
    assert (bench.logs / "rank-0.log").read_text() == "error: the first\nhello\n"
    assert bench.run("1:exit:5")[2].startswith("error: rank 1 stopped with exit code 5;")


def test_ranks_that_make_progress_are_restarted_and_each_time_the_user_is_told(bench: Bench) -> None:
    crashes = [f"1@{n}:beat:{n}-{n + 1}" for n in range(2)] + ["1@0:kill:SIGKILL", "1@1:crash:boom"]
    outcome, out, err = bench.run("0@0:sleep:60", "0@1:sleep:60", *crashes, "*:print:done", restarts=2)
    assert (outcome, out) == (Outcome(0), "done\n")
    assert err == (
        "note: rank 1 on node7 was killed by SIGKILL (out of memory?) after step 1; restarted (1 of 2), resuming\n"
        "note: rank 1 on node7 stopped with exit code 1 (RuntimeError: boom) after step 2; "
        "restarted (2 of 2), resuming\n"
    )


def test_a_rank_that_is_killed_while_all_start_again_is_no_reason_to_give_up(bench: Bench) -> None:
    script = ["*@0:beat:0-1", "0@0:sleep:60", "0@1:sleep:60", "1@0:kill:SIGKILL", "1@1:kill:SIGKILL"]
    outcome, out, err = bench.run(*script, "*:print:done", restarts=3)
    assert (outcome, out) == (Outcome(0), "done\n")
    assert [line.rpartition("restarted ")[2] for line in err.splitlines()] == [
        "(1 of 3), resuming",
        "(2 of 3), resuming",
    ]


def test_after_the_last_restart_the_last_failure_is_the_reason(bench: Bench) -> None:
    script = ["0@0:beat:0-1", "0@1:beat:1-2", "0@0:crash:first", "0@1:exit:7"]
    outcome, _, err = bench.run(*script, restarts=1)
    note, error = err.splitlines()
    assert "(RuntimeError: first) after step 1; restarted (1 of 1)" in note
    assert error.startswith("error: rank 0 on node7 stopped with exit code 7 after step 2; ")
    assert outcome.code == 7


@pytest.mark.parametrize(
    "script, code",
    [
        (["1:kill:SIGKILL"], 137),  # never began
        (["*:beat:5-5", "1:kill:SIGKILL"], 137),  # finished no step
        (["*:beat:5-9", "1:error:no column x"], 3),  # refused
        (["*:beat:5-9", "0:stopped:9", "1:exit:1"], 143),  # told to stop
    ],
)
def test_a_restart_that_would_end_the_same_is_not_tried(bench: Bench, script: list[str], code: int) -> None:
    outcome, _, err = bench.run("*@1:print:again", *script, "0:sleep:60", restarts=3)
    assert outcome.code == code
    assert "restarted" not in err
    assert "again" not in (bench.logs / "rank-1.log").read_text()


def test_beats_of_an_earlier_attempt_or_job_do_not_count_as_progress(bench: Bench) -> None:
    bench.run("*:beat:0-9", "1:exit:5")
    assert "restarted" not in bench.run("1:exit:5", restarts=3)[2]
    err = bench.run("*@0:beat:0-9", "1:exit:5", restarts=3)[2]
    note, error = err.splitlines()
    assert "after step 9; restarted (1 of 3)" in note
    assert error.startswith("error: rank 1 stopped with exit code 5; ")


def test_an_orderly_stop_is_told_from_success_even_if_only_a_rank_was_told(bench: Bench) -> None:
    outcome, _, err = bench.run("*:stopped:120")
    assert (outcome, err) == (Outcome(143, stopped=Stopped(120, 120)), "")
    assert bench.run("0:print:the marker is of the job before")[0] == Outcome(0)


def test_cores_are_shared_unless_the_user_says(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert bench.job(ranks=1).environment()["OMP_NUM_THREADS"] == str(cores)
    assert bench.job(ranks=2 * cores).environment()["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert bench.run("0:show:OMP_NUM_THREADS")[1] == "OMP_NUM_THREADS=7\n"


def test_without_a_terminal_the_ranks_are_told_of_none(bench: Bench) -> None:
    assert bench.run("0:show:SPARTA_TERMINAL")[1] == "SPARTA_TERMINAL=None\n"


def test_a_job_leaves_only_its_logs(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    bench.run("0:exit:1")
    assert sorted(path.name for path in bench.logs.iterdir() if not re.match("rank-", path.name)) == [
        "verdict.json"
    ]
    assert list(scratch.iterdir()) == []
