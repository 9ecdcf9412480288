"""Heartbeats: how far each rank has come, as its service keeps it in a file while it runs.

    <logs>/rank-<r>.beat   {"rank": 1, "host": "node7", "step": 120, "began": 100, ...}, padded with blanks

The file is rewritten in place, so a rank that is killed may leave it torn; that counts as no beat.
"""

import json
from dataclasses import dataclass
from pathlib import Path

BEATS = "SPARTA_BEATS"
"""Environment variable of the ranks: the folder for their beats."""

IDLE = "idle"
"""The phase of a rank that waits for something to train on."""


@dataclass(frozen=True)
class Beat:
    """What one rank said last."""

    host: str
    step: int
    """The last optimizer step it finished."""
    began: int
    """The step that it started or resumed from."""
    phase: str
    """What it did last."""


def read_beat(logs: Path, rank: int) -> Beat | None:
    """A rank's beat; None if it never got so far, or was killed while it wrote."""
    return _read(logs / f"rank-{rank}.beat")


def progressed(logs: Path) -> bool:
    """Whether any rank has finished a step since it began, or has come so far that there was nothing to train on."""
    beats = (_read(path) for path in logs.glob("rank-*.beat"))
    return any(beat.step > beat.began or beat.phase == IDLE for beat in beats if beat)


def clear_beats(logs: Path) -> None:
    """Remove the beats of what ran here before."""
    for path in logs.glob("rank-*.beat"):
        path.unlink(missing_ok=True)


def _read(path: Path) -> Beat | None:
    try:
        said = json.loads(path.read_bytes())
        return Beat(str(said["host"]), int(said["step"]), int(said["began"]), str(said["phase"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
