"""A small raw data set with signal in it, prepared as a user would, and a job for it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from sparta.service.config import Job, parse_job
from sparta.service.data.prepare import prepare
from sparta.service.data.spec import load_spec

ROWS = {"train": 2000, "valid": 500, "test": 501}


def raw_table(rows: int, seed: int) -> pa.Table:
    """Clicks that depend on a colour, a number and the tags of a user."""
    random = np.random.default_rng(seed)
    colour, user = random.integers(0, 12, rows), random.integers(0, 40, rows)
    price = random.exponential(10, rows)
    tags = [sorted(set(random.integers(0, 5, random.integers(0, 4)).tolist())) for _ in range(rows)]
    logit = 0.5 * (colour % 5) - 0.1 * price + np.array([0.7 * (3 in tag) for tag in tags])
    click = random.random(rows) < 1 / (1 + np.exp(-logit))
    return pa.table(
        {
            "click": click.astype(np.int64),
            "price": price,
            "colour": [f"c{value}" for value in colour],
            "user": user,
            "tags": ["|".join(map(str, tag)) for tag in tags],
        }
    )


def write_raw(folder: Path) -> Path:
    """Raw Parquet files and a spec; the spec's path."""
    folder.mkdir(parents=True)
    for number, (split, rows) in enumerate(ROWS.items()):
        pq.write_table(raw_table(rows, number), folder / f"{split}.parquet")
    spec = folder / "spec.yaml"
    spec.write_text(
        yaml.safe_dump(
            {
                "files": {split: str(folder / f"{split}.parquet") for split in ROWS},
                "labels": "click",
                "dense": {"price": {"transform": "log1p"}},
                "sparse": {"colour": None, "user": None, "tags": {"separator": "|"}},
            }
        )
    )
    return spec


def write_dataset(folder: Path) -> Path:
    """The raw files and the dataset made of them; the dataset's folder."""
    spec = write_raw(folder / "raw")
    prepare(load_spec(str(spec), []), folder / "data", progress=False)
    return folder / "data"


def job_of(data: Path, /, **sections: dict[str, Any]) -> Job:
    """A quick job; `train={"epochs": 3}` and the like change or add keys of a section."""
    raw: dict[str, Any] = {
        "name": "toy",
        "data": {"path": str(data), "batch_size": 128},
        "model": {
            "name": "deepfm",
            "embedding_dim": 8,
            "init_std": 0.01,
            "args": {"hidden": [16, 16], "dropout": 0.1, "batch_norm": True},
        },
        "optim": {"tables": {"name": "rowwise_adagrad", "lr": 0.1}, "dense": {"lr": 0.01}},
        "train": {"epochs": 2, "log_every": 1},
    }
    for section, values in sections.items():
        raw[section] = {**raw.get(section, {}), **values}
    return parse_job(raw, "test")


def job_file(folder: Path, data: Path, /, **sections: dict[str, Any]) -> Path:
    """The same as a file."""
    path = folder / "job.yaml"
    path.write_text(job_of(data, **sections).dump())
    return path


def history(run: Path) -> list[dict[str, Any]]:
    """All lines of a run's history."""
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
