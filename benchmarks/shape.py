"""The speed shape, which most benchmarks measure, its ids and its dataset; and a whole `sparta train` of it.

DeepFM, 39 categorical fields of dim 16 with their 1-wide twins, MLP 3 x 400, batch 4096, a million rows in all
tables together, Zipf ids.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sparta.models.schema import Feature, Schema

FIELDS, HIDDEN, RATE = 39, (400, 400, 400), 1e-3
NAMES = tuple(f"C{i}" for i in range(1, FIELDS + 1))
MILLION = 1_000_000
WARM = 40
"""Steps of a whole training that do not count."""


@dataclass(frozen=True)
class Shape:
    """What is trained; the defaults are the speed shape."""

    model: str = "deepfm"
    rows: int = MILLION
    """Of all tables together, twins left out."""
    dim: int = 16
    batch: int = 4096
    device: str = "cpu"

    @property
    def each(self) -> int:
        """Rows of one table."""
        return max(2, self.rows // FIELDS)

    def schema(self, samples: int) -> Schema:
        """Of a dataset with so many training rows."""
        sparse = tuple(Feature(name=name, rows=self.each) for name in NAMES)
        return Schema(sparse=sparse, labels=("label",), splits={"train": samples})


def ids(rng: np.random.Generator, samples: int, shape: Shape) -> np.ndarray:
    """(FIELDS, samples) int64 Zipf ids."""
    return np.minimum(rng.zipf(1.2, (FIELDS, samples)) - 1, shape.each - 1)


def write(folder: Path, shape: Shape, steps: int) -> None:
    """A dataset of so many steps."""
    rng, samples = np.random.default_rng(1), shape.batch * steps
    (folder / "train").mkdir(parents=True)
    shape.schema(samples).save(folder)
    columns = dict(zip(NAMES, ids(rng, samples, shape).astype(np.int32), strict=True))
    columns["label"] = rng.integers(0, 2, samples).astype(np.float32)
    pq.write_table(
        pa.table(columns),
        folder / "train" / "part-00000.parquet",
        compression="zstd",
        row_group_size=65_536,
        write_page_checksum=True,
    )


def train(
    data: Path,
    shape: Shape,
    tables: Mapping[str, Any],
    *,
    steps: int,
    precision: str = "fp32",
    ranks: int = 1,
    save_every: int | None = None,
) -> float:
    """Examples a second of `sparta train`, the first `WARM` steps left out, stalls of checkpoints counted.

    The launcher gives every rank its share of the cores as threads.
    """
    job = {
        "name": "speed",
        "data": {"path": str(data), "batch_size": shape.batch},
        "model": {"name": shape.model, "embedding_dim": shape.dim, "args": {"hidden": list(HIDDEN)}},
        "optim": {"tables": {"lr": RATE, **tables}, "dense": {"lr": RATE}},
        "train": {
            "precision": precision,
            "max_steps": steps,
            "log_every": 10,
            "ranks": ranks,
            "device": shape.device,
        },
        **({"checkpoint": {"every": save_every}} if save_every else {}),
    }
    lines, result = trained(job)
    rates = [line["examples_per_second"] for line in lines if line["step"] > WARM]
    samples = len(rates) * 10 * shape.batch
    stalled = result["checkpoints"]["stall_seconds"] if save_every else 0.0
    return samples / (samples / statistics.harmonic_mean(rates) + stalled)


def trained(job: Mapping[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What `sparta train` notes of the steps of a job, and its result."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "job.yaml").write_text(json.dumps(job))
        command = [sys.executable, "-m", "sparta.launcher", "train", str(folder / "job.yaml")]
        subprocess.run([*command, "--run-dir", str(folder / "run")], check=True, capture_output=True)
        lines = [json.loads(line) for line in (folder / "run" / "history.jsonl").read_text().splitlines()]
        result = json.loads((folder / "run" / "result.json").read_text())
    return [line for line in lines if "loss" in line], result
