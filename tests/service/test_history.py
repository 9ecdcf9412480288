"""What is written is read back, line by line, and is always JSON."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparta.models.errors import DataError
from sparta.service.history import History, read_history


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.jsonl"


def test_the_keys_are_the_designs(path: Path) -> None:
    history = History(path)
    history.step(10, 0, 0.41, 40960, examples_per_second=12.5)
    history.evaluation(10, 0, "valid", {"click": {"auc": 0.7, "logloss": 0.5}})
    assert read_history(path) == [
        {"step": 10, "epoch": 0, "loss": 0.41, "examples": 40960, "examples_per_second": 12.5},
        {"step": 10, "epoch": 0, "eval": "valid", "auc": 0.7, "logloss": 0.5},
    ]


def test_several_tasks_are_told_apart_by_label(path: Path) -> None:
    history = History(path)
    history.evaluation(
        3, 1, "test", {"click": {"auc": 0.7, "ne": 0.9}, "buy": {"auc": None, "auc_error": 1e-6}}
    )
    (line,) = read_history(path)
    assert line["auc"] == {"click": 0.7, "buy": None}
    assert line["ne"] == {"click": 0.9, "buy": None}
    assert line["auc_error"] == {"click": None, "buy": 1e-6}


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, np.float64("nan")])
def test_what_json_does_not_know_is_null(path: Path, odd: float) -> None:
    history = History(path)
    history.step(1, 0, odd, 1, grad_norm=odd)
    history.evaluation(1, 0, "valid", {"a": {"auc": odd}, "b": {"auc": 0.5}})
    step, evaluation = [
        json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()
    ]
    assert step["loss"] is None
    assert step["grad_norm"] is None
    assert evaluation["auc"] == {"a": None, "b": 0.5}


def test_each_line_is_on_disk_before_the_next(path: Path) -> None:
    history = History(path)
    for step in range(1, 4):
        history.step(step, 0, 0.5, step)
        assert len(read_history(path)) == step


def test_it_is_appended_to_never_rewritten(path: Path) -> None:
    for step in range(3):
        history = History(path)
        history.step(step, 0, 0.5, step)
    assert [line["step"] for line in read_history(path)] == [0, 1, 2]


def test_every_cut_of_the_file_leaves_whole_lines_and_can_be_continued(path: Path) -> None:
    history = History(path)
    for step in range(3):
        history.step(step, 0, 0.5, step)
    content = path.read_bytes()
    for size in range(len(content) + 1):  # a kill may leave any part of the last line
        path.write_bytes(content[:size])
        whole = read_history(path)
        history = History(path)
        history.step(99, 0, 0.5, 99)
        assert [line["step"] for line in read_history(path)] == [*(line["step"] for line in whole), 99]


@pytest.mark.parametrize("bad", ["{", "[1]", ""])
def test_a_broken_line_is_named(path: Path, bad: str) -> None:
    path.write_text('{"step": 1}\n' + bad + "\n")
    with pytest.raises(DataError, match=r"history\.jsonl: line 2 is no JSON object"):
        read_history(path)


def test_a_missing_file_is_named(path: Path) -> None:
    with pytest.raises(DataError, match=r"history\.jsonl: not readable"):
        read_history(path)


def test_going_on_cuts_exactly_what_came_after_the_checkpoint(path: Path) -> None:
    history = History(path)
    for step in range(1, 6):
        history.step(step, 0, 0.5, step)
        if step % 2 == 0:
            history.evaluation(step, 0, "valid", {"click": {"auc": 0.7}})
    lines = read_history(path)
    torn = path.read_text() + '{"step": 3, "ep'
    for until in range(8):
        for evaluated in (True, False):
            path.write_text(torn)
            History(path, until, evaluated=evaluated).step(99, 0, 0.5, 99)
            *kept, last = read_history(path)
            assert last["step"] == 99
            assert kept == [
                line
                for line in lines
                if line["step"] < until or (line["step"] == until and (evaluated or "eval" not in line))
            ]


def test_a_disk_that_is_full_for_a_while_costs_no_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = History(path)
    history.step(1, 0, 0.5, 1)
    with monkeypatch.context() as patch:
        plain = Path.open

        def full(self: Path, *arguments: Any, **options: Any) -> Any:
            with plain(self, *arguments, **options) as file:
                file.write('{"step"')  # as much as there was room for
            raise OSError(28, "No space left on device")

        patch.setattr(Path, "open", full)
        history.step(2, 0, 0.5, 2)
        history.step(3, 0, 0.5, 3)
    assert [line["step"] for line in read_history(path)] == [1]
    assert path.read_text().endswith("\n")
    with pytest.raises(DataError, match="the last lines could not be written; free space and use --resume"):
        history.close()
    history.step(4, 0, 0.5, 4)
    history.close()
    assert [line["step"] for line in read_history(path)] == [1, 2, 3, 4]


def test_lines_that_a_full_disk_did_not_take_come_back_from_the_checkpoint_once(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history = History(path)
    history.step(1, 0, 0.5, 10)
    plain, path_open = Path.open, "a"

    def full(self: Path, mode: str = "r", **more: Any) -> Any:
        if mode == path_open:
            raise OSError(28, "No space left on device")
        return plain(self, mode, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", full)
        history.step(2, 0, 0.25, 20)
    saved = history.unwritten
    assert json.loads(saved)["step"] == 2
    with pytest.raises(DataError, match="could not be written"):
        history.close()
    for _ in range(2):  # killed before the next line, and after it
        History(path, until=2, unwritten=saved)
        assert [line["step"] for line in read_history(path)] == [1, 2]
    history.step(3, 0, 0.125, 30)
    history.close()
