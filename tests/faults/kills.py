"""Hundreds of kills at random times; the runs must end as if nothing had happened. `make faults`.

A run of two ranks is killed up to eight times, each time resumed, and then left alone. After every kill the disk is
judged as the kill left it; at the end the weights, the history and the result must be those of the same job unkilled.
Exit code 1 says that something was lost, that a run differs, or that a phase had too few kills.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import yaml

from sparta.models.errors import ConfigError, DataError
from sparta.service.checkpoint import manifest as disk
from sparta.service.checkpoint.storage import Storage
from sparta.service.machine import versions
from tests.faults import harness, inject
from tests.faults.aim import AIMED, Tempo, draw, fire, phase_of, says, watch
from tests.faults.ranks import output_of, start
from tests.service.toys import write_dataset

JOB_SEEDS = 5
KILLS_PER_RUN = 8
KILLS_PER_PHASE = 10

STUCK_SECONDS = 8.0
"""After which a rank gives up waiting for another."""
GRACE_SECONDS = 20.0
"""Of the rank that was not killed, in which it is to end by itself."""
MEETING_SECONDS = 3.0
"""The same before it has a heartbeat: whoever waits there for the dead is ended by torchrun, here by us."""


REFUSALS = (ConfigError.exit_code, DataError.exit_code)
"""Exit codes after which the launcher would not start the ranks again."""


class Siege:
    """The runs of one job folder, the kills they got and what came of them."""

    def __init__(self, folder: Path, kills: int, seed: int, *, commit_first: bool) -> None:
        self.by_phase: Counter[str] = Counter()
        self.lines: list[str] = []
        """The log: JSON, one a kill, one a run, and a summary."""
        self.told: list[str] = []
        """What went wrong, a line each."""
        self.outlived_seconds = 0.0
        """Longest that a rank with a heartbeat outlived the other."""
        self.unmet = 0
        """Ranks ended before they had met the other."""
        self._folder = folder
        self._kills = kills
        self._seed = seed
        self._random = Random(seed)
        self._fault = inject.commit_first if commit_first else None
        self._quota = min(KILLS_PER_PHASE, kills // (2 * len(AIMED)))
        self._done = 0
        self._run = 0
        self._data = write_dataset(folder / "toy")
        self._unkilled: dict[int, tuple[Path, Tempo, dict[str, str]]] = {}

    def lay(self) -> None:
        """Run and kill until there were enough kills, or something went wrong."""
        while self._done < self._kills and not self.told:
            self._run += 1
            self._one_run(seed=1 + self._run % JOB_SEEDS)
        if not self.told:
            self.told += [
                f"only {self.by_phase[phase]} of the kills were in phase {phase}, {self._quota} are needed"
                for phase in AIMED
                if self.by_phase[phase] < self._quota
            ]
        self._note(
            {
                "summary": "kills by phase",
                "by_phase": dict(self.by_phase),
                "kills": self._done,
                "runs": self._run,
                "harness_seed": self._seed,
                "wrong": self.told,
                "outlived_seconds_max": round(self.outlived_seconds, 2),
                "ended_before_they_met": self.unmet,
                "date": datetime.now(UTC).date().isoformat(),
                "commit": _commit(),
                "versions": versions(),
            }
        )

    def _one_run(self, seed: int) -> None:
        job, tempo, expected = self._reference(seed)
        run = self._folder / f"run-{self._run}"
        for _ in range(KILLS_PER_RUN):
            codes = self._one_kill(job, run, seed, tempo)
            if self.told:
                return
            if codes == [0, 0] or self._done == self._kills:
                break
        if codes != [0, 0]:
            codes = start(job, run, 2, self._fault).wait()
        if codes != [0, 0]:
            self.told.append(f"run {self._run} could not go on: exit codes {codes}; {_last_words(run)}")
            return
        found = harness.digests(run)
        equal = found == expected
        if not equal:
            different = ", ".join(name for name in found if found[name] != expected[name])
            self.told.append(f"run {self._run} of job seed {seed} differs from the unkilled run: {different}")
        self._note({"run": self._run, "job_seed": seed, **found, "equal": equal})
        if equal:
            shutil.rmtree(run)

    def _one_kill(self, job: Path, run: Path, seed: int, tempo: Tempo) -> list[int]:
        """One attempt and, unless it ends before, its kill; the exit codes."""
        before = _newest(run)
        missing = {phase: self._quota - self.by_phase[phase] for phase in AIMED}
        aim = draw(self._random, missing, self._kills - self._done, tempo, before)
        attempt = start(job, run, 2, self._fault)
        seconds = fire(attempt, aim, tempo)
        killed = time.monotonic()
        other = 1 - aim.rank
        met = says(attempt, other) is not None
        codes = attempt.wait(after_death=GRACE_SECONDS if met else MEETING_SECONDS)
        if seconds is None or codes[aim.rank] != -9:
            if codes != [0, 0]:
                self.told.append(f"run {self._run} failed unkilled: exit codes {codes}; {_last_words(run)}")
            return codes
        outlived = time.monotonic() - killed
        met = met or says(attempt, other) is not None
        self._done += 1
        phase, step = phase_of(attempt, aim.rank)
        self.by_phase[phase] += 1
        told = _lost(run, before)
        if codes[other] in REFUSALS:
            told.append(f"rank {other} took it for a mistake of the user's: {_last_words(run)}")
        if met:
            self.outlived_seconds = max(self.outlived_seconds, outlived)
            if codes[other] == -9:
                told.append(f"rank {other} was still there {GRACE_SECONDS:g} s after")
        else:
            self.unmet += codes[other] == -9
        self.told += [f"run {self._run}, kill {self._done} in {phase}: {line}" for line in told]
        self._note(
            {
                "kill": self._done,
                "run": self._run,
                "job_seed": seed,
                "rank": aim.rank,
                "aimed": aim.phase,
                "phase": phase,
                "step": step,
                "ms": round(1000 * seconds),
                "disk": _on_disk(run),
                "other_exit": codes[other],
                "other_ms": round(1000 * outlived),
            }
        )
        return codes

    def _reference(self, seed: int) -> tuple[Path, Tempo, dict[str, str]]:
        """The job of a seed, and how it goes when nobody is killed."""
        if seed not in self._unkilled:
            folder = self._folder / f"seed-{seed}"
            folder.mkdir()
            job = _write_job(folder, self._data, seed)
            if not self._unkilled:
                start(job, folder / "warm-up", 2).wait()  # compiles; its times say nothing
            tempo = watch(start(job, folder / "unkilled", 2))
            self._unkilled[seed] = job, tempo, harness.digests(folder / "unkilled")
        return self._unkilled[seed]

    def _note(self, line: dict[str, Any]) -> None:
        self.lines.append(json.dumps(line))
        print(self.lines[-1], flush=True)


def _write_job(folder: Path, data: Path, seed: int) -> Path:
    """A job whose saves take long enough to be hit."""
    args = {"hidden": [256, 64], "dropout": 0.1, "batch_norm": True}
    path = harness.write_job(
        folder, data, model={"embedding_dim": 32, "args": args}, tolerate={"stuck_seconds": STUCK_SECONDS}
    )
    job = yaml.safe_load(path.read_text())
    job["train"]["seed"] = seed
    path.write_text(yaml.safe_dump(job))
    return path


def _newest(run: Path) -> int:
    """Step of the newest checkpoint that is called complete."""
    names = disk.committed(Storage(run / "checkpoints"))
    return int(names[-1].split("-")[1]) if names else 0


def _lost(run: Path, before: int) -> list[str]:
    """What a kill has cost beyond the promise; `before` is the newest checkpoint's step when the attempt began."""
    told = harness.losses(run) if (run / "job.yaml").exists() else []
    if _newest(run) < before:
        told.append(f"the checkpoint of step {before} is gone")
    return told


def _on_disk(run: Path) -> dict[str, str]:
    """Folders of checkpoints by step: "committed", or the files of what a save left."""
    storage = Storage(run / "checkpoints")
    complete = disk.committed(storage)
    files = {
        name: " ".join(sorted(path.name for path in (run / "checkpoints" / name).iterdir()))
        for name in storage.names()
    }
    return {
        name.removeprefix(disk.PREFIX).lstrip("0"): "committed" if name in complete else files[name]
        for name in files
    }


def _commit() -> str | None:
    """The code that was killed; with a plus if files differ from the commit."""
    said = [
        subprocess.run(["git", *words], capture_output=True, text=True).stdout.strip()
        for words in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
    ]
    return f"{said[0]}+" if said[1] else said[0]


def _last_words(run: Path) -> str:
    """What the ranks said last."""
    lines = [output_of(run, rank).read_text().strip().splitlines()[-1:] for rank in (0, 1)]
    return " | ".join(line for tail in lines for line in tail)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1, help="of the times, ranks and phases")
    parser.add_argument("--commit-first", action="store_true", help="with the mistake that must be found")
    parser.add_argument("--log", type=Path, help="JSON lines, one a kill, one a run, and a summary")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sparta-faults-") as folder:
        siege = Siege(Path(folder), options.kills, options.seed, commit_first=options.commit_first)
        siege.lay()
    if options.log:
        options.log.write_text("".join(f"{line}\n" for line in siege.lines))
    for line in siege.told:
        print(f"error: {line}", file=sys.stderr)
    return 1 if siege.told else 0


if __name__ == "__main__":
    sys.exit(main())
