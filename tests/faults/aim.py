"""When to kill whom: random times that the victim knows nothing of, more of them where a phase is short.

The parent sees a rank from outside only, by its beat file. A kill comes a random time after the start; one that is
aimed at a phase then waits until the victim shows that phase, and a random part of how long the phase takes.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from statistics import median
from typing import Any

from sparta.service.checkpoint.files import OTHERS
from tests.faults.inject import PHASES
from tests.faults.ranks import Attempt

AIMED = (*PHASES, OTHERS, "step", "evaluate")
"""Phases that need their share of the kills."""

ALL_RANKS = ("copy", "data", OTHERS, "step", "evaluate")
"""Phases of every rank; the others are the first's alone."""

POLL_SECONDS = 0.0002


@dataclass(frozen=True)
class Tempo:
    """How long a run without kills takes, as seen from outside."""

    steps: int
    """Of the whole run."""
    start_seconds: float
    """Until the first rank trains."""
    seconds: float
    phases: Mapping[tuple[int, str], float]
    """Seconds by rank and phase: the median, from where it shows to where another does."""

    def left(self, step: int) -> float:
        """Seconds of a run that goes on after a step, its start included."""
        return self.start_seconds + (self.seconds - self.start_seconds) * (1 - step / self.steps)


@dataclass(frozen=True)
class Aim:
    """A kill to come."""

    rank: int
    after_seconds: float
    phase: str | None = None
    part: float = 0.0
    """Of the phase's usual length."""


def says(attempt: Attempt, rank: int) -> dict[str, Any] | None:
    """What a rank last said in this attempt; None before its heartbeat has begun."""
    beat = attempt.beats().get(rank)
    return beat if beat and beat["pid"] == attempt.processes[rank].pid else None


def phase_of(attempt: Attempt, rank: int) -> tuple[str, int]:
    """(phase, last finished step) of a rank, "start" before it says any."""
    beat = says(attempt, rank)
    return (beat["saving"] or beat["phase"], beat["step"]) if beat else ("start", 0)


def watch(attempt: Attempt) -> Tempo:
    """Follow a run that nobody kills to its end."""
    began = time.monotonic()
    ranks = range(len(attempt.processes))
    shown = dict.fromkeys(ranks, ("start", began))
    took: dict[tuple[int, str], list[float]] = {}
    while any(process.is_alive() for process in attempt.processes):
        for rank in ranks:
            phase, now = phase_of(attempt, rank)[0], time.monotonic()
            before, since = shown[rank]
            if phase != before:
                took.setdefault((rank, before), []).append(now - since)
                shown[rank] = (phase, now)
        time.sleep(POLL_SECONDS)
    seconds = time.monotonic() - began
    phases = {key: median(times) for key, times in took.items()}
    return Tempo(phase_of(attempt, 0)[1], phases[0, "start"], seconds, phases)


def draw(random: Random, missing: Mapping[str, int], left: int, tempo: Tempo, step: int) -> Aim:
    """The next kill of a run that goes on after `step`.

    Args:
        missing: kills that each phase still needs.
        left: kills to come, this one included.
    """
    short = [phase for phase in AIMED if missing.get(phase, 0) > 0]
    # A kill that is aimed at a phase misses it now and then, so some are kept in reserve.
    spare = left - 2 * sum(missing[phase] for phase in short)
    if not short or random.random() < spare / left:
        return Aim(random.randrange(2), random.uniform(0, tempo.left(step)))
    phase = random.choices(short, [missing[phase] for phase in short])[0]
    rank = random.randrange(2) if phase in ALL_RANKS else 0
    return Aim(rank, random.uniform(0, 0.8 * tempo.left(step)), phase, random.random())


def fire(attempt: Attempt, aim: Aim, tempo: Tempo) -> float | None:
    """Wait for the moment and kill; seconds after the start, None when the run had ended before."""
    began = time.monotonic()
    victim = attempt.processes[aim.rank]
    while (left := began + aim.after_seconds - time.monotonic()) > 0:
        victim.join(left)
        if not victim.is_alive():
            return None
    if aim.phase is not None:
        while phase_of(attempt, aim.rank)[0] != aim.phase:
            if not victim.is_alive():
                return None
            time.sleep(POLL_SECONDS)
        time.sleep(aim.part * tempo.phases.get((aim.rank, aim.phase), 0.0))
    try:
        attempt.kill(aim.rank)
    except ProcessLookupError:
        return None
    return time.monotonic() - began
