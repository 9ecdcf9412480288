"""One line and one exit code for every way a job can fail."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from sparta.launcher.verdict import TAIL_BYTES, Logs, Verdict

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
        (tmp_path / "failures.json").write_text('{"2": 9}')
        job = Logs(tmp_path, 3)
        for rank, text in logs.items():
            with (tmp_path / f"rank-{rank}.log").open("a") as file:
                file.write(text)
        if codes:
            (tmp_path / "failures.json").write_text(json.dumps(codes))
        return job.verdict()

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
    (tmp_path / "torchrun.log").unlink(missing_ok=True)
    verdict = fail({}, {0: "error: not of a rank that failed\n"})
    assert verdict.line == f"error: torchrun stopped; its log is {tmp_path / 'torchrun.log'}"
    assert verdict.code == 1


def test_a_huge_log_is_not_read_whole(tmp_path: Path) -> None:
    logs = Logs(tmp_path, 1)
    (tmp_path / "rank-0.log").write_text("x\n" * TAIL_BYTES + "error: a\n")
    (tmp_path / "failures.json").write_text('{"0": 2}')
    assert logs.verdict().line == "error: a"
    assert len(logs.tail(tmp_path / "rank-0.log")) == TAIL_BYTES
    assert len(logs.last_lines(tmp_path / "rank-0.log").split("\n")) == 20
