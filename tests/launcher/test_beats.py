"""Beats are read as they were written, or not at all."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparta.launcher.beats import Beat, clear_beats, progressed, read_beat

WIDTH = 256


def beat(host: str, step: int, began: int, phase: str = "step") -> str:
    """A beat as the service writes it."""
    said = {"rank": 1, "host": host, "pid": 7, "step": step, "began": began, "phase": phase, "at": 1.5}
    return json.dumps(said).ljust(WIDTH) + "\n"


@given(st.integers(0, 10**9), st.integers(0, WIDTH))
def test_a_beat_that_is_cut_anywhere_is_whole_or_none(
    tmp_path_factory: pytest.TempPathFactory, step: int, cut: int
) -> None:
    logs = tmp_path_factory.getbasetemp()
    (logs / "rank-1.beat").write_text(beat("node7", step, 0)[:cut])
    assert read_beat(logs, 1) in (None, Beat("node7", step, 0, "step"))


def test_what_is_no_beat_is_none(tmp_path: Path) -> None:
    assert read_beat(tmp_path, 0) is None
    for text in ("[]", "7", "{}", '{"host": "a", "step": null, "began": 0}', "\xff"):
        (tmp_path / "rank-0.beat").write_bytes(text.encode("latin1"))
        assert read_beat(tmp_path, 0) is None


def test_to_wait_for_data_is_progress_though_no_step_is_done(tmp_path: Path) -> None:
    for phase in ("start", "step", "evaluate", "save"):
        (tmp_path / "rank-0.beat").write_text(beat("a", 5, 5, phase))
        assert not progressed(tmp_path)
    (tmp_path / "rank-1.beat").write_text(beat("b", 5, 5, "idle"))
    assert progressed(tmp_path)


def test_one_rank_that_finished_a_step_is_progress(tmp_path: Path) -> None:
    assert not progressed(tmp_path)
    (tmp_path / "rank-0.beat").write_text("torn")
    (tmp_path / "rank-1.beat").write_text(beat("a", 5, 5))
    assert not progressed(tmp_path)
    (tmp_path / "rank-12.beat").write_text(beat("b", 6, 5))
    assert progressed(tmp_path)
    clear_beats(tmp_path)
    assert list(tmp_path.iterdir()) == []
