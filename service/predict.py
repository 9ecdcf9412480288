"""`predict`: raw values in, probabilities out, through the dataset's vocabulary."""

import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch.distributed as dist

from sparta.models.errors import ConfigError
from sparta.models.schema import Schema
from sparta.service import build
from sparta.service.config import Job
from sparta.service.data.prepare import encode_file
from sparta.service.data.vocab import load_vocabulary
from sparta.service.scoring import probabilities
from sparta.service.world import World
from sparta.sharding.shard import Sharded

SPLIT = "predict"


def predict(job: Job, schema: Schema, sharded: Sharded, world: World, raw: Path, out: Path) -> int:
    """Score every row of `raw`, in order, into `out`: one float32 column `<label>` a task; the number of rows.

    The ranks score contiguous shares; `out` appears at the end, in one piece.

    Raises:
        ConfigError: `out` exists, is to be no Parquet file, or its folder is not there.
        DataError: `raw` does not hold what the dataset's columns need.
    """
    scratch = out.with_name(out.name + ".draft")
    world.once(lambda: _check_free(out))
    try:
        return _predict(job, schema, sharded, world, raw, out, scratch)
    finally:
        if world.first:
            shutil.rmtree(scratch, ignore_errors=True)


def _predict(
    job: Job, schema: Schema, sharded: Sharded, world: World, raw: Path, out: Path, scratch: Path
) -> int:
    rows = world.once(lambda: _encode(job.data.path, schema, raw, scratch))
    scored = schema.model_copy(update={"splits": {SPLIT: rows}})
    loader = build.scoring_loader(scratch, scored, SPLIT, job.data.batch_size, world)
    first, end = rows * world.rank // world.ranks, rows * (world.rank + 1) // world.ranks
    kept = job.data.negatives.kept if job.data.negatives else 1.0
    scores = probabilities(sharded, loader, world, rows=end - first, negatives_kept=kept).numpy()
    columns = {label: pa.array(scores[:, task]) for task, label in enumerate(schema.labels)}
    pq.write_table(pa.table(columns), scratch / f"rank-{world.rank:05d}.parquet")
    dist.barrier()
    world.once(lambda: _join(scratch, world.ranks, out))
    return rows


def _check_free(out: Path) -> None:
    if out.suffix not in ("", ".parquet", ".pq"):
        raise ConfigError(f"{out}: scores are written as Parquet; give --out {out.with_suffix('.parquet')}")
    if out.exists():
        raise ConfigError(f"{out}: exists already; give another --out or remove it")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"{out}: its folder does not exist; make it or give another --out")


def _encode(dataset: str | Path, schema: Schema, raw: Path, scratch: Path) -> int:
    """Encode `raw` into the scratch folder as a split of its own; its rows."""
    shutil.rmtree(scratch, ignore_errors=True)  # left by an interrupted run
    rows = encode_file(dataset, schema, raw, scratch / SPLIT)
    for note in strangers(dataset, schema, scratch / SPLIT):
        print(f"note: {note}", file=sys.stderr)
    return rows


def strangers(dataset: str | Path, schema: Schema, split: Path) -> list[str]:
    """A line for every feature of which most values are missing or unknown here, but were not in training."""
    notes = []
    for feature in schema.sparse:
        ids = pq.read_table(split, columns=[feature.name]).column(0)
        values = pc.list_flatten(ids) if feature.multi else ids
        here = _share(pc.sum(pc.equal(values, 0)).as_py() or 0, len(values))
        counts = load_vocabulary(dataset, feature.name).counts
        there = _share(int(counts[0]), int(counts.sum()))
        if here > 0.5 and here > 2 * there:
            notes.append(
                f"{feature.name}: {here:.0%} of the values are missing or unknown ({there:.0%} in training)"
            )
    return notes


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _join(scratch: Path, ranks: int, out: Path) -> None:
    """The ranks' shares one after the other, renamed into place when complete."""
    parts = [pq.ParquetFile(scratch / f"rank-{rank:05d}.parquet") for rank in range(ranks)]
    joined = scratch / "scores.parquet"
    with pq.ParquetWriter(joined, parts[0].schema_arrow) as writer:
        for part in parts:
            writer.write_table(part.read())
    joined.replace(out)
