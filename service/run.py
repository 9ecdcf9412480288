"""A run directory: one run's job, plan, history, checkpoints and result. Never two runs in one.

runs/<name>/job.yaml   plan.json   history.jsonl   result.json   curves.png   checkpoints/   logs/
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from sparta.models.errors import ConfigError, DataError
from sparta.models.schema import Schema, load_schema
from sparta.service.alone import RunLock
from sparta.service.config import Job, load_job

FORMAT = 1
"""Version of the run directory, written to result.json."""

_RANKS = re.compile(r"^  ranks: .*\n", re.MULTILINE)


class RunDirectory:
    """Paths and small files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = RunLock(path)
        self.job = path / "job.yaml"
        self.schema = path / "schema.json"
        self.plan = path / "plan.json"
        self.history = path / "history.jsonl"
        self.result = path / "result.json"
        self.starts = path / "starts.log"
        """A line whenever training started here."""
        self.metrics = path / "metrics.json"
        """Where Prometheus finds the ranks while they run."""
        self.curves = path / "curves.png"
        self.source = path / "from.json"
        self.scores = path / "scores"
        """Logits of the test split, where `train.test` is kept."""
        self.diverged = path / "DIVERGED"
        """Why there is no result, where the losses left the finite numbers."""
        self.checkpoints = path / "checkpoints"
        self.partitions = path / "partitions"
        """Partitions of a watched folder, encoded."""

    def check_free(self) -> None:
        """Refuse a directory that holds another run or cannot be written; makes nothing.

        Raises:
            ConfigError: in one line, with the way out.
        """
        if self.job.exists():
            raise ConfigError(f"{self.path}: already holds a run; give another --run-dir")
        path = self.path.absolute()
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        if not there.is_dir():
            raise ConfigError(f"{self.path}: cannot be made ({there} is a file); give a writable --run-dir")
        if not os.access(there, os.W_OK | os.X_OK):
            raise ConfigError(f"{self.path}: {there} is not writable; give another --run-dir")

    def begun(self, job: Job) -> bool:
        """Whether there is a run to go on with; a start of this job that was killed in `claim` left none."""
        # Its text is this job's, whole or cut short, but for the ranks: a job file of the user's own is not.
        mine, there = (
            _RANKS.sub("", text)
            for text in (job.dump(), self.job.read_text() if self.job.exists() else "not there")
        )
        if mine.startswith(there) and not self.schema.exists():
            self.job.unlink()
        return self.job.exists()

    def claim(self, job: Job, schema: Schema, source: Mapping[str, Any] | None = None) -> None:
        """Take the lock, write the resolved job, then what the data was: from now on the directory is this run's.

        Args:
            source: what it begins with (`--from`), for a start that is killed before its first checkpoint.

        Raises:
            ConfigError: another run was quicker, or the disk refuses.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self.lock.take()
            with self.job.open("x") as file:
                file.write(job.dump())
            self.source.unlink(missing_ok=True)
            if source:
                write_atomically(self.source, json.dumps(source) + "\n")
            schema.save(self.path)
        except OSError as error:
            if self.job.exists():
                raise ConfigError(f"{self.path}: already holds a run; give another --run-dir") from error
            raise ConfigError(
                f"{self.path}: cannot be written ({error.strerror}); give a writable --run-dir"
            ) from error

    def take_up(self, job: Job) -> None:
        """Go on with the run: from now on it is described by `job`, which `resume.check` has let pass."""
        write_atomically(self.job, job.dump())
        self.checkpoints.mkdir(exist_ok=True)

    def begun_from(self) -> dict[str, Any] | None:
        """What `claim` was given as the source."""
        return json.loads(self.source.read_text()) if self.source.exists() else None

    def count_start(self) -> int:
        """Note that training starts; how often it did before."""
        with suppress(OSError), self.starts.open("a+") as file:  # a full disk is no reason not to
            file.seek(0)
            before = len(file.readlines())
            file.write(datetime.now(UTC).isoformat(timespec="seconds") + "\n")
            return before
        return 0

    def check_same_data(self, schema: Schema) -> None:
        """Refuse a dataset whose columns, vocabularies or statistics are not those of the training.

        Raises:
            DataError: in one line, with the way out.
        """
        trained = load_schema(self.path)
        if (trained.fingerprint, trained.columns) != (schema.fingerprint, schema.columns):
            raise DataError(
                f"{self.path}: the dataset was prepared anew since this run was trained, from other rows or settings, "
                "so ids mean something else; point to the old one with --set data.path=DIR, or train again"
            )

    def read_job(self, overrides: Sequence[str] = ()) -> Job:
        """The resolved job of a finished or running run, edited by `key=value` overrides.

        Raises:
            ConfigError: this is no run directory.
        """
        if not self.job.is_file():
            raise ConfigError(f"{self.path}: holds no job.yaml, so it is no run directory of `sparta train`")
        return load_job(self.job, overrides)

    def tested(self, job: Job) -> Literal["best", "last"]:
        """Which weights result.json is about, or will be: the best if the job may stop early, unless they were lost."""
        with suppress(OSError, ValueError, KeyError):
            if json.loads(self.result.read_text())["weights"] == "last":
                return "last"
        return "best" if job.train.early_stop else "last"

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write result.json in one piece."""
        write_atomically(
            self.result, json.dumps({"format": FORMAT, **result}, indent=1, allow_nan=False) + "\n"
        )


def write_atomically(path: Path, text: str) -> None:
    """A reader sees the old file or the new one, never half of it."""
    draft = path.with_name(path.name + ".draft")
    with draft.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
