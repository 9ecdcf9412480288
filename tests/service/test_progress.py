"""A bar on a terminal, lines elsewhere, silence on the other ranks."""

import io
import re

import pytest
from rich.console import Console

from sparta.models.errors import ConfigError
from sparta.service.progress import LINE_SECONDS, TERMINAL, Progress, console

VALID = {"click": {"auc": 0.75, "logloss": 0.5}, "buy": {"auc": 0.65}, "none": {"auc": None}}


class Clock:
    """Time that passes when told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def plain() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=False, width=80), out


def test_plain_lines_tell_everything_in_one_line() -> None:
    out, text = plain()
    clock = Clock()
    with Progress(2000, out=out, clock=clock) as progress:
        clock.now += 100
        progress.validated(VALID)
        progress.update(500, epoch=0, loss=0.41234, examples_per_second=123_456)
    assert text.getvalue() == (
        "valid  AUC 0.7000\nstep 500/2,000  epoch 0  loss 0.4123  123k ex/s  AUC 0.7000  ETA 5:00\n"
    )


def test_plain_lines_keep_their_distance_but_the_last_step_is_told() -> None:
    out, text = plain()
    clock = Clock()
    with Progress(100, out=out, clock=clock) as progress:
        for step in range(1, 101):
            progress.update(step, epoch=0, loss=0.5, examples_per_second=1.0)
            clock.now += LINE_SECONDS / 4
    told = [int(number) for number in re.findall(r"step (\d+)/", text.getvalue())]
    assert told == [*range(1, 101, 4), 100]


def test_eta_counts_from_where_this_process_started() -> None:
    out, text = plain()
    clock = Clock()
    with Progress(10_000, out=out, clock=clock) as progress:
        progress.begin(9_000)
        progress.update(9_000, epoch=1, loss=0.5, examples_per_second=0.0)
        clock.now += 3600
        progress.update(9_500, epoch=1, loss=0.5, examples_per_second=2.5e6)
    told, first, second = text.getvalue().splitlines()
    assert told == "note: going on after step 9,000"
    assert first.endswith("0 ex/s  ETA -:--")
    assert second.endswith("2.5M ex/s  ETA 1:00:00")


def test_where_all_steps_are_done_it_is_told_how_more_are_made() -> None:
    out, text = plain()
    with Progress(100, out=out) as progress:
        progress.begin(100)
    told = " ".join(text.getvalue().split())
    assert told.startswith("note: all 100 steps are done; a larger --set train.epochs=N or train.max_steps=N")


def test_an_undefined_auc_is_not_shown() -> None:
    out, text = plain()
    with Progress(10, out=out) as progress:
        progress.validated({"click": {"auc": None}})
        progress.update(10, epoch=0, loss=float("nan"), examples_per_second=1.0)
    assert "AUC" not in text.getvalue()
    assert "loss nan" in text.getvalue()


def test_other_ranks_are_silent(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TERMINAL, "80")
    with Progress(10, rank=1) as progress:
        progress.validated(VALID)
        progress.update(10, epoch=0, loss=0.5, examples_per_second=1.0)
    assert capfd.readouterr() == ("", "")


def test_the_launchers_terminal_gets_a_bar_of_its_width_on_stderr(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TERMINAL, "90")
    monkeypatch.setenv("TERM", "xterm-256color")
    with Progress(200_000) as progress:
        progress.validated(VALID)
        progress.update(50_000, epoch=0, loss=0.5, examples_per_second=123_456.0)
    out, err = capfd.readouterr()
    assert out == ""
    assert "\x1b[" in err
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", err).rstrip("\n").replace("\r", "\n").split("\n")
    assert max(len(line) for line in shown) <= 90
    assert "━" in shown[-1]
    for part in ("50,000/200,000", "epoch 0", "loss 0.5000", "123k ex/s", "AUC 0.7000", "ETA 0:00"):
        assert part in shown[-1]


def test_the_cursor_comes_back_after_an_error(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TERMINAL, "90")
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(RuntimeError, match="mine"), Progress(10):
        raise RuntimeError("mine")
    assert "\x1b[?25h" in capfd.readouterr().err


@pytest.mark.parametrize("columns", ["0", "-3", "wide", "8.5"])
def test_a_width_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv(TERMINAL, columns)
    with pytest.raises(ConfigError, match=re.escape(repr(columns))):
        console()


def test_without_the_launcher_rich_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(TERMINAL, "")
    assert not console().is_terminal
    assert console().stderr


def test_a_run_that_goes_on_says_so_and_knows_only_its_own_pace() -> None:
    out, text = plain()
    clock = Clock()
    with Progress(10_000, out=out, clock=clock) as progress:
        clock.now += 1e6  # loading
        progress.begin(9_000)
        clock.now += 3600
        progress.update(9_500, epoch=1, loss=0.5, examples_per_second=2.5e6)
    first, second = text.getvalue().splitlines()
    assert first == "note: going on after step 9,000"
    assert second.endswith("ETA 1:00:00")


def test_a_run_that_begins_says_nothing_of_it() -> None:
    out, text = plain()
    with Progress(10, out=out) as progress:
        progress.begin(0)
    assert text.getvalue() == ""


def test_without_an_end_there_is_no_time_left() -> None:
    out, text = plain()
    with Progress(None, out=out) as progress:
        progress.update(1_500, epoch=1, loss=0.5, examples_per_second=2.5e6)
    assert text.getvalue() == "step 1,500  epoch 1  loss 0.5000  2.5M ex/s\n"
