"""The table holds every number, and says what is attainable where that is known."""

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from sparta.models.schema import Feature, Schema
from sparta.service.report import result_table, scores_table, show

FULL = {"auc": 0.78, "gauc": 0.66, "logloss": 0.45, "ne": 0.8, "calibration": 1.01}


def shown(tests: dict[str, dict[str, Any]], **schema: Any) -> str:
    result = {
        "name": "demo",
        "steps": 1200,
        "examples": 4_915_200,
        "examples_per_second": 123456.7,
        "eval": {"valid": tests, "test": tests},
    }
    out = io.StringIO()
    data = Schema(sparse=(Feature(name="C1", rows=3),), labels=tuple(tests), splits={"test": 9}, **schema)
    show(result_table(result, data), Path("runs/" + "long/" * 20), out=Console(file=out, width=80))
    return out.getvalue()


def row(text: str, start: str) -> list[str]:
    """The cells of the first row that starts so."""
    return next(line.split() for line in text.splitlines() if line.split()[:1] == [start])


def test_one_task_is_one_row_a_split() -> None:
    text = shown({"click": FULL})
    assert row(text, "split") == ["split", "AUC", "GAUC", "LogLoss", "NE", "calibration"]
    for split in ("valid", "test"):
        assert row(text, split) == [split, "0.7800", "0.6600", "0.4500", "0.8000", "1.0100"]
    assert "1,200 steps, 4,915,200 examples, 123,457 examples/s" in text
    assert "run directory: runs/" + "long/" * 19 in text
    assert "attainable" not in text


def test_gauc_is_shown_only_where_it_is_and_undefined_is_a_dash() -> None:
    metrics: dict[str, Any] = {"auc": None, "logloss": 0.45, "ne": None, "calibration": None}
    text = shown({"click": metrics})
    assert "GAUC" not in text
    assert row(text, "test") == ["test", "-", "0.4500", "-", "-"]


def test_a_binned_auc_states_its_error() -> None:
    assert "0.7800 ±3e-06" in shown({"click": {**FULL, "auc_error": 2.6e-6}})


def test_what_is_attainable_is_told_with_the_share_of_the_gain() -> None:
    text = shown({"click": FULL}, attainable={"click": {"auc": 0.81, "logloss": 0.42}})
    assert "AUC 0.7800 of 0.8100 attainable (90.3% of the gain over 0.5)" in text
    assert "LogLoss 0.4500, at best 0.4200" in text


def test_several_tasks_are_named() -> None:
    text = shown(
        {"click": FULL, "[b]buy": {**FULL, "auc": None}},
        attainable={"click": {"auc": 0.85}, "[b]buy": {"auc": 0.9}},
    )
    assert row(text, "valid")[:3] == ["valid", "click", "0.7800"]
    assert "[b]buy" in text
    assert "click: AUC 0.7800 of 0.8500 attainable (80.0% of the gain over 0.5)" in text
    assert text.count("attainable") == 1


def test_scores_alone_are_the_table_without_the_run() -> None:
    scores = {"test": {"click": FULL}}
    data = Schema(sparse=(), labels=("click",), splits={"test": 9}, attainable={"click": {"auc": 0.81}})
    out = io.StringIO()
    Console(file=out, width=80).print(scores_table(scores, data))
    assert row(out.getvalue(), "test") == ["test", "0.7800", "0.6600", "0.4500", "0.8000", "1.0100"]
    assert "0.8100 attainable" in out.getvalue()
    assert "examples" not in out.getvalue()


def test_labels_that_are_noise_have_no_share_of_a_gain() -> None:
    assert "attainable" not in shown({"click": FULL}, attainable={"click": {"auc": 0.5}})
