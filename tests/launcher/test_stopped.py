"""Only the marker of this job tells that it stopped in order."""

import json
import os
from pathlib import Path

import pytest

from sparta.launcher.stopped import StopMarker, Stopped


def leave(run: Path, step: int, checkpoint: int | None) -> None:
    """What rank 0 leaves."""
    marker = {"step": step, "checkpoint": checkpoint, "reason": "SIGTERM"}
    (run / "new").write_text(json.dumps(marker))
    os.replace(run / "new", run / "STOPPED")


def test_an_earlier_marker_does_not_count_until_it_is_written_anew(tmp_path: Path) -> None:
    first = StopMarker(tmp_path)
    assert first.read() is None
    leave(tmp_path, 7, 5)
    assert first.read() == Stopped(7, 5)
    second = StopMarker(tmp_path)
    assert second.read() is None
    leave(tmp_path, 7, 5)
    assert second.read() == Stopped(7, 5)
    (tmp_path / "STOPPED").unlink()
    assert second.read() is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"step": null, "checkpoint": 1}'])
def test_a_torn_marker_is_none(text: str, tmp_path: Path) -> None:
    marker = StopMarker(tmp_path)
    (tmp_path / "STOPPED").write_text(text)
    assert marker.read() is None


def test_the_line_says_what_was_saved_and_can_be_pasted() -> None:
    command = ["sparta", "train", "my job.yaml", "--resume"]
    end = "; go on with: sparta train 'my job.yaml' --resume"
    assert Stopped(7, 7).line(command) == f"stopped after step 7{end}"
    assert Stopped(7, 5).line(command) == f"stopped after step 7, saved after step 5{end}"
    assert Stopped(7, None).line(command) == f"stopped after step 7, before anything was saved{end}"
