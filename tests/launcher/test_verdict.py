"""One line and one exit code for every way a job can fail."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from sparta.launcher.verdict import TAIL_BYTES, TRY_AGAIN, Logs, Verdict

TRACEBACK = """[rank0]: Traceback (most recent call last):
[rank0]:   File "x.py", line 1, in <module>
[rank0]:     f()
[rank0]: RuntimeError: connection closed
"""
Fail = Callable[[Mapping[int, int], Mapping[int, str]], Verdict]


@pytest.fixture
def fail(tmp_path: Path) -> Fail:
    """A job of three ranks that fails after an earlier one that failed too."""

    def fail(codes: Mapping[int, int], logs: Mapping[int, str]) -> Verdict:
        for rank in range(3):
            (tmp_path / f"rank-{rank}.log").write_text("error: of an earlier job\n")
        job = Logs(tmp_path)
        for rank, text in logs.items():
            with (tmp_path / f"rank-{rank}.log").open("a") as file:
                file.write(text)
        return job.verdict(codes)

    return fail


def test_rank_0_speaks_for_all(fail: Fail) -> None:
    verdict = fail({0: 3, 1: 3, 2: -15}, {0: "error: a\n", 1: "error: a\n"})
    assert (verdict.line, verdict.code, verdict.refused) == ("error: a", 3, True)


def test_another_ranks_line_stands_when_rank_0_has_none(fail: Fail) -> None:
    verdict = fail({0: 1, 2: 3}, {0: TRACEBACK, 2: "error: c\n"})
    assert (verdict.line, verdict.code) == ("error: c", 3)


def test_the_line_is_found_behind_colours_and_a_progress_bar(fail: Fail) -> None:
    assert fail({0: 4}, {0: "\r 10%\r 20%\n\x1b[?25herror: table C3 does not fit\nbye\n"}).line == (
        "error: table C3 does not fit"
    )


def test_a_rank_told_to_stop_after_its_line_still_gives_a_code(fail: Fail) -> None:
    assert fail({1: -15}, {1: "error: a\n"}).code == 1


def test_a_killed_rank_is_blamed_before_those_that_lost_it(fail: Fail, tmp_path: Path) -> None:
    verdict = fail({0: 1, 1: -9, 2: -15}, {0: TRACEBACK})
    log = tmp_path / "rank-1.log"
    assert verdict.line == f"error: rank 1 was killed by SIGKILL (out of memory?); its log is {log}"
    assert (verdict.code, verdict.refused) == (137, False)


def test_a_raise_is_blamed_before_an_abort_that_follows_it(fail: Fail, tmp_path: Path) -> None:
    verdict = fail({0: -6, 1: 1, 2: -15}, {1: TRACEBACK})
    reason = "RuntimeError: connection closed"
    assert (
        verdict.line
        == f"error: rank 1 stopped with exit code 1 ({reason}); its log is {tmp_path / 'rank-1.log'}"
    )
    assert verdict.code == 1


def test_a_silent_exit_is_named(fail: Fail, tmp_path: Path) -> None:
    assert (
        fail({2: 7}, {}).line
        == f"error: rank 2 stopped with exit code 7; its log is {tmp_path / 'rank-2.log'}"
    )


def test_without_any_rank_torchrun_is_named(fail: Fail, tmp_path: Path) -> None:
    log = tmp_path / "torchrun.log"
    earlier = Logs(tmp_path)
    earlier.leave(earlier.verdict({2: 9}))
    logs = Logs(tmp_path)
    (tmp_path / "rank-0.log").write_text("error: not of a rank that failed\n")
    killed = "torchrun stopped without a word, as if it had been killed (out of memory?)"
    assert (logs.left().line, logs.left().code) == (f"error: {killed}; its log is {log}", 1)
    log.write_text("Traceback\nNoPort: 1\n")
    assert logs.left().line == f"error: torchrun stopped (NoPort: 1); its log is {log}"


@pytest.mark.parametrize("log", ["", "error: no column x\n", TRACEBACK])
def test_what_is_left_is_read_as_it_was(log: str, tmp_path: Path) -> None:
    logs = Logs(tmp_path)
    (tmp_path / "rank-1.log").write_text(log)
    verdict = logs.verdict({0: -15, 1: 3})
    logs.leave(verdict)
    assert logs.left() == verdict


def test_a_rank_that_gave_up_waiting_is_believed_but_did_not_refuse(fail: Fail) -> None:
    verdict = fail({1: TRY_AGAIN}, {1: "error: rank 0 made no step in 600 s\n"})
    assert (verdict.line, verdict.refused) == ("error: rank 0 made no step in 600 s", False)
    verdict = fail({0: TRY_AGAIN, 1: 3}, {0: "error: rank 1 made no step\n", 1: "error: no column x\n"})
    assert (verdict.line, verdict.refused) == ("error: no column x", True)


@pytest.mark.parametrize(
    "code, end", [(-9, "was killed by SIGKILL (out of memory?)"), (7, "stopped with exit code 7")]
)
def test_a_dead_ranks_host_and_last_step_are_told_if_it_got_so_far(
    code: int, end: str, tmp_path: Path
) -> None:
    logs = Logs(tmp_path)
    (tmp_path / "rank-1.beat").write_text('{"host": "node7", "step": 120, "began": 100, "phase": "step"}   ')
    log = tmp_path / "rank-1.log"
    assert logs.verdict({1: code}).line == f"error: rank 1 on node7 {end} after step 120; its log is {log}"
    (tmp_path / "rank-1.beat").write_text('{"host": "node7", "st')
    assert logs.verdict({1: code}).line == f"error: rank 1 {end}; its log is {log}"


def test_a_huge_log_is_not_read_whole(tmp_path: Path) -> None:
    logs = Logs(tmp_path)
    (tmp_path / "rank-0.log").write_text("x\n" * TAIL_BYTES + "error: a\n")
    assert logs.verdict({0: 2}).line == "error: a"
    assert len(logs.tail(tmp_path / "rank-0.log")) == TAIL_BYTES
    assert len(logs.last_lines(tmp_path / "rank-0.log").split("\n")) == 20
