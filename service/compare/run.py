"""The course of a study: tune, choose, run every seed. Who runs the cells is given: slots here, or a scheduler.

No torch here.
"""

import fcntl
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product

from sparta.models.errors import ConfigError, SpartaError
from sparta.service.arguments import STAGES
from sparta.service.compare.cells import Cell, Folder, Record, final, tuning
from sparta.service.compare.table import plain

Runner = Callable[[Sequence[Cell]], Iterator[tuple[Cell, float | Exception | None]]]
"""Runs cells in any order; yields each when it has ended, and the seconds it took if they are known, or what it failed
of. It ends when all have, or raises what the others would fail of too."""


@dataclass(frozen=True)
class Part:
    """The part of a study that is asked for."""

    data: tuple[str, ...]
    models: tuple[str, ...]
    optimizers: tuple[str, ...]
    stages: tuple[str, ...] = STAGES


def grids(folder: Folder, part: Part) -> list[Cell]:
    """All cells of the grids, once, although models may share them."""
    return _once(cell for group in _groups(part) for cell in tuning(folder.study, *group))


def finals(folder: Folder, part: Part) -> list[Cell]:
    """The seeds of what has been chosen; none where a grid is not done yet."""
    chosen = ((group, folder.chosen(*group)[0]) for group in _groups(part))
    return _once(
        cell for group, knobs in chosen if knobs is not None for cell in final(folder.study, *group, knobs)
    )


def check_jobs(folder: Folder, part: Part) -> None:
    """Refuse cells that are no jobs; no data is needed.

    Raises:
        ConfigError: the first one.
    """
    for group in _groups(part):
        for cell in _kinds(folder, *group):
            folder.job(cell)


def check(folder: Folder, part: Part, *, ranks: int | None = None) -> None:
    """Refuse what would be refused only hours later.

    Args:
        ranks: that every cell must have, if they are run here.

    Raises:
        ConfigError: a cell is no valid job, or has no label that is compared, or needs other ranks.
        DataError: a dataset that is not there.
    """
    for data, model, optimizer in _groups(part):
        for cell in _kinds(folder, data, model, optimizer):
            job, splits = folder.job(cell), folder.schema(cell).splits
            folder.label(cell)
            for split in ("valid", "test"):
                if not splits.get(split):
                    raise ConfigError(f"data.{data}: the dataset has no {split} split; prepare it with one")
            if ranks and job.train.ranks != ranks:
                raise ConfigError(
                    f"{cell.name}: train.ranks {job.train.ranks}, but a slot is one process; write "
                    f"`set: {{train.ranks: {ranks}}}` into the study, or hand the cells to --submit"
                )


def _kinds(folder: Folder, data: str, model: str, optimizer: str) -> list[Cell]:
    """The grid's cells, and one final."""
    study = folder.study
    first = study.optimizers[optimizer].points[0]
    return [*tuning(study, data, model, optimizer), final(study, data, model, optimizer, first)[0]]


def say(line: str) -> None:
    """Print it, at once."""
    print(line, flush=True)


def go(folder: Folder, part: Part, runner: Runner, tell: Callable[[str], None] = say) -> None:
    """Run what is not done of the grids, then of the seeds; a line for every cell that has ended.

    Raises:
        Exception: what the first cell failed of, when all others have ended; or at once what the runner raises. What is
            done stays, and the rest is run when the study is run again.
    """
    began, ran, failed = time.monotonic(), 0, list[Exception]()
    for stage, cells_of in (("tune", grids), ("final", finals)):
        if stage not in part.stages:
            continue
        todo = [cell for cell in cells_of(folder, part) if _result(folder, cell) is None]
        later = 0
        if stage == "tune" and "final" in part.stages:
            done = sum(folder.record(cell) is not None for cell in finals(folder, part))
            later = len(list(_groups(part))) * len(folder.study.seeds) - done
        for number, (cell, took) in enumerate(runner(todo), 1):
            ended, ran = _ended(folder, cell, took), ran + 1
            if isinstance(ended, Exception):
                failed.append(ended)
            # Cells run side by side: what counts is how often one ends.
            left = (time.monotonic() - began) / ran * (len(todo) - number + later)
            tell(
                f"{time.strftime('%H:%M:%S')} {stage} {number}/{len(todo)} {cell.name}: {_told(cell, ended)}; "
                f"about {_time(left)} left"
            )
    if failed:
        tell(f"{len(failed)} of {ran} cells failed; the same command runs them again")
        raise failed[0]


@contextmanager
def alone(folder: Folder) -> Iterator[None]:
    """Keep the folder for this process; SIGTERM ends it as Ctrl-C does.

    Raises:
        ConfigError: another one has it.
    """
    with (folder.path / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"{folder.path}: another `sparta compare` is at work there; wait for it"
            ) from error
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)


def listed(folder: Folder, part: Part, verb: Sequence[str] = ("sparta", "train")) -> Iterator[str]:
    """A line a cell: how it stands, and the command that runs it; where the grids are not done, no final cells.

    Raises:
        ConfigError: a cell is no valid job.
    """
    check_jobs(folder, part)
    counts = {"done": 0, "to do": 0}
    stages = [(stage, of) for stage, of in (("tune", grids), ("final", finals)) if stage in part.stages]
    for stage, cells_of in stages:
        for cell in cells_of(folder, part):
            record = folder.record(cell)
            state = "to do" if record is None else "done"
            counts[state] += 1
            yield f"{state:<6} {stage:<6} {cell.name}{'' if record is None else f': {told(record)}'}"
            if record is None:
                yield f"  {folder.command(cell, verb)}"
    yield f"{counts['done']} cells done, {counts['to do']} to do"
    known = [len(folder.chosen(*group)[1]) == len(tuning(folder.study, *group)) for group in _groups(part)]
    if "final" in part.stages and not all(known):
        seeds, choices = len(folder.study.seeds), known.count(False)
        yield f"and {seeds} seeds for each of {choices} choices that the grids have to make"


def told(record: Record) -> str:
    """What a cell came to, in a few words."""
    if record["valid"] is None:
        return f"diverged ({record['error'].partition(';')[0]})"
    scores = [f"{split} {plain(record[split]['auc'])}" for split in ("valid", "test") if split in record]
    return f"{', '.join(scores)}, {record['seconds']:.0f} s"


def _ended(folder: Folder, cell: Cell, took: float | Exception | None) -> Record | Exception:
    """What a cell came to, of which note is taken, or what it failed of."""
    if isinstance(took, Exception):
        return took
    try:
        record = folder.note(cell, took)
    except SpartaError as error:
        return error
    without = f"{cell.name}: ended without a result in {folder.run(cell)}; run the study again"
    return SpartaError(without) if record is None else record


def _told(cell: Cell, ended: Record | Exception) -> str:
    if isinstance(ended, Exception):
        why = str(ended).partition("\n")[0].removeprefix(f"{cell.name}: ") or type(ended).__name__
        return f"failed ({why}), the others go on"
    return told(ended)


def _result(folder: Folder, cell: Cell) -> Record | None:
    """What a cell came to; also when the study was killed before it took note."""
    return folder.record(cell) or folder.note(cell)


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"


def _groups(part: Part) -> Iterator[tuple[str, str, str]]:
    return product(part.data, part.models, part.optimizers)


def _once(cells: Iterator[Cell]) -> list[Cell]:
    return list(
        {(cell.data, cell.model, cell.optimizer, cell.knobs, cell.seed): cell for cell in cells}.values()
    )
