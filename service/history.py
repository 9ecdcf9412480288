"""`history.jsonl`: one JSON object a line, appended as training goes.

A logged step is `{"step", "epoch", "loss", "examples", ...}`. An evaluation is `{"step", "epoch",
"eval": split, "auc", "logloss", ...}`; with several tasks each metric is an object by label. A number
JSON does not know (NaN, infinity) is null.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparta.models.errors import DataError
from sparta.service.run import write_atomically


class History:
    """Appends to the file, each line is in the file before the call returns; only the first rank has one.

    Args:
        until: the step of the checkpoint that training goes on from; later lines are cut.
        evaluated: whether the evaluation after that step is behind us; if not, it will be noted again.
        unwritten: lines that the checkpoint holds because the disk was full; they may have been written since.
    """

    def __init__(
        self, path: Path, until: int | None = None, *, evaluated: bool = True, unwritten: str = ""
    ) -> None:
        path.touch()
        if until is None:
            _cut_torn_line(path)
        else:
            # What was done after the checkpoint will be done again.
            end = until, evaluated
            lines = [line for line in read_history(path) if (line["step"], "eval" in line) <= end]
            lines += [line for line in map(json.loads, unwritten.splitlines()) if line not in lines]
            write_atomically(path, "".join(json.dumps(line) + "\n" for line in lines))
        self._path = path
        self.unwritten = ""
        """Lines that a full disk did not take; the next one tries again, and a checkpoint has them."""

    def close(self) -> None:
        """See that every line is in the file.

        Raises:
            DataError: the disk is full.
        """
        if self.unwritten:
            raise DataError(f"{self._path}: the last lines could not be written; free space and use --resume")

    def step(self, step: int, epoch: int, loss: float, examples: int, **more: float) -> None:
        """Note a step: the mean loss since the last note, the samples trained on so far."""
        self._write({"step": step, "epoch": epoch, "loss": loss, "examples": examples, **more})

    def evaluation(
        self, step: int, epoch: int, split: str, metrics: Mapping[str, Mapping[str, float | None]]
    ) -> None:
        """Note the metrics of a split, given by label, after `step`."""
        tasks = list(metrics.values())
        names = dict.fromkeys(name for task in tasks for name in task)
        by_metric: dict[str, Any] = (
            dict(tasks[0])
            if len(tasks) == 1
            else {name: {label: task.get(name) for label, task in metrics.items()} for name in names}
        )
        self._write({"step": step, "epoch": epoch, "eval": split, **by_metric})

    def _write(self, line: Mapping[str, Any]) -> None:
        self.unwritten += json.dumps(_finite(line), allow_nan=False) + "\n"
        size = self._path.stat().st_size
        try:
            # Opened for each line: a reader on another machine of a network disk sees it once it is closed.
            with self._path.open("a", encoding="utf-8") as file:
                file.write(self.unwritten)
        except OSError:  # a disk may be full while a checkpoint is written to it: with the next line, then
            os.truncate(self._path, size)
        else:
            self.unwritten = ""


def read_history(path: Path) -> list[dict[str, Any]]:
    """All lines, oldest first. A last line without its end was torn by a kill and is left out.

    Raises:
        DataError: no such file, or a line that is no JSON object.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable ({error}); it is written by `sparta train`") from error
    lines = []
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            value = None
        if not isinstance(value, dict):
            raise DataError(f"{path}: line {number} is no JSON object; remove the line")
        lines.append(value)
    return lines


def _cut_torn_line(path: Path) -> None:
    """Drop what a killed run left of its last line, lest the next one be written behind it."""
    with path.open("r+b") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def _finite(value: Any) -> Any:
    """The value with null for every number JSON does not know."""
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value
