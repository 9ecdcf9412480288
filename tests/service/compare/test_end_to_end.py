"""A tiny study of real runs: killed, it goes on where it stopped and ends as one that was not killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from sparta.service import build
from sparta.service.compare import worker
from sparta.service.compare.cells import Cell, Folder
from sparta.service.compare.datasets import prepare_all
from sparta.service.compare.run import STAGES, Part, check, go
from sparta.service.compare.study import load_study
from sparta.service.compare.verb import render
from tests.pool import Pool
from tests.service import toys

STUDY: dict[str, Any] = {
    "name": "tiny",
    "seeds": [1, 2],
    "tuning": {"seed": 9, "model": "dnn"},
    "resamples": 20,
    "set": {"train.ranks": 1, "train.device": "cpu"},
    "data": {"toy": {"job": "job.yaml", "prepare": "raw/spec.yaml"}},
    "models": {name: {"set": {"model.name": name}} for name in ("dnn", "deepfm")},
    "optimizers": {
        "adam": {"set": {"optim.tables.name": "adam"}, "grid": {"lr": [0.01, 0.005]}},
        "helen": {"set": {"optim.tables.name": "helen"}, "grid": {"lr": [0.01], "rho": [0.01, 0.05]}},
    },
}
JOB = {
    "name": "toy",
    "data": {"path": "nowhere", "batch_size": 256},
    "model": {"name": "dnn", "embedding_dim": 4, "init_std": 0.01, "args": {"hidden": [8]}},
    "train": {"epochs": 2, "early_stop": {"patience": 1}},
}
CELLS = 4 + 2 * 2 * 2


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study's file, beside its raw data."""
    place = tmp_path_factory.mktemp("study")
    toys.write_raw(place / "raw")
    (place / "job.yaml").write_text(yaml.safe_dump(JOB))
    (place / "study.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    return place / "study.yaml"


@pytest.fixture(scope="module")
def undisturbed(pool: Pool, study: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """The folder of the study when nobody kills it; of each cell, whether it was final, and the splits it read."""
    work = tmp_path_factory.mktemp("undisturbed") / "work"
    return work, pool.run(1, in_one_process, study, work)[0]


def in_one_process(rank: int, ranks: int, path: Path, work: Path) -> list[tuple[bool, list[str]]]:
    """The whole study in this process, cell after cell."""
    folder = Folder(work, load_study(path))
    part = Part(tuple(folder.study.data), tuple(folder.study.models), tuple(folder.study.optimizers), STAGES)
    reads: list[tuple[bool, list[str]]] = []

    def run(cells: Sequence[Cell]) -> Iterator[tuple[Cell, float]]:
        for cell in cells:
            reads.append((cell.final, []))
            with _reading(reads[-1][1].append):
                yield cell, worker.run(Path(cell.job), folder.edits(cell), folder.run(cell))

    folder.make()
    prepare_all(folder, part.data)
    check(folder, part, ranks=1)
    go(folder, part, run, lambda line: None)
    render(folder)
    return reads


class _reading:  # noqa: N801
    """Tells of every split that is scored."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell, self.of = tell, build.scoring_loader

    def __enter__(self) -> None:
        def told(folder: Any, of: Any, split: str, *arguments: Any, **more: Any) -> Any:
            loader = self.of(folder, of, split, *arguments, **more)
            epoch = loader.epoch
            loader.epoch = lambda number: (self.tell(split), epoch(number))[1]
            return loader

        build.scoring_loader = told

    def __exit__(self, *error: object) -> None:
        build.scoring_loader = self.of


def records(work: Path) -> dict[str, Any]:
    """What the cells came to, without what differs from time to time."""
    found = {path.stem: json.loads(path.read_text()) for path in (work / "cells").glob("*.json")}
    changing = ("seconds", "examples_per_second", "rerun", "date")
    return {name: {k: v for k, v in one.items() if k not in changing} for name, one in found.items()}


def start(study: Path, work: Path, *words: str) -> "subprocess.Popen[str]":
    """The verb, on two slots with a core each: on one thread every cell is the same to the bit."""
    command = [sys.executable, "-m", "sparta.service", "compare", str(study), "--work", str(work), *words]
    return subprocess.Popen(
        [*command, "--slots", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2]),
    )


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def test_only_final_cells_read_the_test_split_and_they_read_it_once(
    undisturbed: tuple[Path, list[Any]],
) -> None:
    work, reads = undisturbed
    assert len(reads) == CELLS
    for final, splits in reads:
        assert splits.count("test") == final
        assert "valid" in splits
    assert sum("test" in record for record in records(work).values()) == sum(final for final, _ in reads) == 8


def test_it_ends_in_a_record_a_table_and_a_picture(undisturbed: tuple[Path, list[Any]]) -> None:
    work, _ = undisturbed
    assert json.loads((work / "study.json").read_text())["name"] == "tiny"
    assert "| deepfm |" in (work / "table.md").read_text()
    assert (work / "study.png").stat().st_size > 10_000
    assert not list(work.glob("runs/*/checkpoints"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_study_that_is_killed_goes_on_and_ends_as_if_it_had_not_been(
    study: Path, undisturbed: tuple[Path, list[Any]], tmp_path: Path
) -> None:
    cells = tmp_path / "cells"
    process = start(study, tmp_path)
    until(lambda: cells.exists() and len(list(cells.glob("*.json"))) >= 1)
    slots = children(process.pid)
    process.kill()
    process.communicate()
    until(lambda: all(gone(pid) for pid in slots))
    done = {path: path.stat().st_mtime_ns for path in cells.glob("*.json")}
    assert 1 <= len(done) < CELLS

    process = start(study, tmp_path)
    until(lambda: len(list(cells.glob("*.json"))) > len(done))
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)  # of one who cannot wait
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "stopped; the same command goes on\n")
    assert len(out.splitlines()) <= CELLS - len(done)

    process = start(study, tmp_path)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    assert {path: path.stat().st_mtime_ns for path in done} == done, "what was done is not run again"
    assert records(tmp_path) == records(undisturbed[0])
    assert (tmp_path / "study.png").exists()


def test_the_service_hands_nothing_to_a_scheduler(study: Path, tmp_path: Path) -> None:
    process = start(study, tmp_path, "--submit", "slurm")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err == "error: --submit slurm: the service runs cells itself; use `sparta compare`\n"
