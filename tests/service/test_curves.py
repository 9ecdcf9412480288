"""The picture is there whatever the history holds, and pyplot is not."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from sparta.models.errors import DataError
from sparta.service.curves import draw, smoothed
from sparta.service.history import History

NONE_DEFINED = {"click": {"auc": None, "logloss": 0.5}}
HISTORIES = {
    "nothing": ([], [], 1),
    "no evaluation": ([0.7, 0.5], [], 1),
    "one step": ([0.7], [{"click": {"auc": 0.6, "logloss": 0.5}}], 3),
    "no number": ([math.nan], [], 1),
    "a gap": ([0.7, math.nan, 0.5], [], 1),
    "undefined auc": ([0.7, 0.6, 0.5], [NONE_DEFINED] * 2, 2),
    "long": (
        [0.5 + 1 / (1 + i) for i in range(500)],
        [{"click": {"auc": 0.6, "gauc": 0.5, "logloss": 0.5}}],
        4,
    ),
    "two tasks": (
        [0.7, 0.6, 0.5],
        [{"click": {"auc": 0.6 + i / 9}, "a b_$": {"auc": None if i else 0.7}} for i in range(3)],
        2,
    ),
}


@pytest.mark.parametrize("name", HISTORIES)
def test_every_history_has_a_picture(tmp_path: Path, name: str) -> None:
    losses, evaluations, panels = HISTORIES[name]
    history = History(tmp_path / "history.jsonl")
    for step, loss in enumerate(losses, start=1):
        history.step(step, 0, loss, step)
    for step, metrics in enumerate(evaluations, start=1):
        history.evaluation(step, 0, "valid", metrics)
    if losses:
        history.evaluation(9, 0, "test", {"click": {"auc": 0.9}})
    out = tmp_path / "curves.png"
    draw(tmp_path / "history.jsonl", out)
    height, width, _ = imread(out).shape
    assert width / height == pytest.approx(panels * 4.6 / 3.4, rel=0.02)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "history.jsonl"]


def test_an_old_picture_survives_a_broken_history(tmp_path: Path) -> None:
    out = tmp_path / "curves.png"
    out.write_bytes(b"old")
    (tmp_path / "history.jsonl").write_text("{\n")
    with pytest.raises(DataError, match="line 1"):
        draw(tmp_path / "history.jsonl", out)
    assert out.read_bytes() == b"old"


@given(st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), max_size=60))
def test_smoothing_stays_within_the_values(values: list[float]) -> None:
    known = [x for x in values if not math.isnan(x)]
    smooth = smoothed(values)
    assert len(smooth) == len(values)
    assert all(math.isnan(x) or min(known) <= x <= max(known) for x in smooth)


def test_smoothing_ignores_one_wild_value_and_keeps_a_line() -> None:
    line = [1 - i / 200 for i in range(200)]
    assert smoothed(line)[10:-10] == pytest.approx(line[10:-10])
    wild = [*line[:100], 1e9, *line[101:]]
    assert smoothed(wild) == pytest.approx(smoothed(line), abs=0.01)


def test_pyplot_is_never_loaded() -> None:
    code = "import sys, sparta.service.curves; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
