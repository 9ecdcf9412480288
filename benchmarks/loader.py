"""Rows a second that one core loads: 13 dense and 26 single-valued columns, zstd, shuffled.

Writes Criteo-shaped Parquet of its own to a temporary folder, then alternates epochs of the loader with
plain pyarrow reads of the same columns, all on one core, and prints one JSON object: the ratio of rows per CPU second,
medians, machine. `rows_per_second` is wall time; CPU time suffers less from other processes on the machine.

    python benchmarks/loader.py --rows 4000000

Where the time goes (65,536 rows, about 30 ms on a quiet machine): Parquet decoding 14.4, permuting and checking 5,
copying slices into batches 5, the permutation itself 1, the queue and its two threads the rest. What helped:
permuting into the memory of a finished row group (fresh pages cost up to as much as the permutation);
checking a column just before it is permuted, while it is cached (21.7 -> 19.9 ms a row group).

What did not help, in the same setting:
- memory-mapped files (13.9 against 14.4 ms, and a file that shrinks would kill the process), pre_buffer,
  a read buffer, Arrow's system or jemalloc pool: all within 4%.
- Ids as int32 in the batch: 1 to 5%, within the noise.
- Reusing the memory of batches that nobody holds any more: no fewer page faults than malloc's own reuse.
- Dense values stored row by row, so that a slice is one memcpy: permuting alone costs 2.2 ms in
  place of 0.6, more than the copies could gain (about 1.3).
- numpy's argsort of the hashes (0.9 ms): sorting hash and index packed in one word takes 0.4.
Verifying page checksums costs 1.1 ms a row group, and stays: a damaged page may hold valid ids.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

sys.path.insert(0, str(Path(__file__).parent))
from measured import circumstances, ratio

from sparta.models.schema import Feature, Schema
from sparta.service.data.loader import Loader

ROW_GROUP = 65_536
DENSE = tuple(f"I{i}" for i in range(1, 14))
# From a handful of rows to a quarter of a million, as Criteo's tables after a minimum count.
TABLE_ROWS = tuple(int(10 ** (1 + 4.4 * i / 25)) for i in range(26))


def write(folder: Path, rows: int) -> Schema:
    """A training split of Zipf-like ids, log-like dense values, 25% positives."""
    rng = np.random.default_rng(1)
    sparse = tuple(Feature(name=f"C{i}", rows=n) for i, n in enumerate(TABLE_ROWS, 1))
    schema = Schema(dense=DENSE, sparse=sparse, labels=("label",), splits={"train": rows})
    (folder / "train").mkdir()
    schema.save(folder)
    writer = None
    for begin in range(0, rows, ROW_GROUP):
        n = min(ROW_GROUP, rows - begin)
        columns: dict[str, np.ndarray] = {}
        for feature in sparse:
            skewed = feature.rows ** rng.random(n) - 1  # log-uniform: P(id) ~ 1 / id
            columns[feature.name] = skewed.astype(np.int32)
        for name in DENSE:
            columns[name] = np.log1p(rng.geometric(0.02, n)).astype(np.float32)
        columns["label"] = (rng.random(n) < 0.25).astype(np.float32)
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(
            folder / "train" / "part-00000.parquet",
            table.schema,
            compression="zstd",
            write_page_checksum=True,
        )
        writer.write_table(table, row_group_size=ROW_GROUP)
    if writer:
        writer.close()
    return schema


def timed(run: Callable[[], int]) -> tuple[float, float]:
    """Rows per wall second and per CPU second."""
    wall, cpu = time.perf_counter(), time.process_time()
    rows = run()
    return rows / (time.perf_counter() - wall), rows / (time.process_time() - cpu)


def plain_read(path: Path, columns: list[str]) -> int:
    with pq.ParquetFile(path) as file:
        return sum(
            file.read_row_group(group, columns=columns, use_threads=False).num_rows
            for group in range(file.num_row_groups)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    about = circumstances()  # before the other cores are given up
    if sys.platform == "linux":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        schema = write(folder, args.rows)
        path = folder / "train" / "part-00000.parquet"
        columns = [*DENSE, *(feature.name for feature in schema.sparse), "label"]
        loader = Loader(folder, schema, "train", batch_size=args.batch_size, streams=args.streams)

        def epoch(number: int) -> int:
            return sum(len(batch.labels) for batch in loader.epoch(number))

        epoch(0)  # warms the page cache and the allocators
        loads, reads = [], []
        for repeat in range(args.repeats):
            works = [
                (loads, lambda number=repeat + 1: epoch(number)),
                (reads, lambda: plain_read(path, columns)),
            ]
            for kept, work in works[:: 1 if repeat % 2 else -1]:
                kept.append(timed(work))
        size = path.stat().st_size
    load, read = ([statistics.median(kind) for kind in zip(*runs, strict=True)] for runs in (loads, reads))
    report = {
        "ratios": {
            "rows a CPU second of the loader to a plain read's": ratio(
                [cpu for _, cpu in loads], [cpu for _, cpu in reads]
            )
        },
        "rows_per_second": round(load[0]),
        "rows_per_cpu_second": round(load[1]),
        "plain_read_rows_per_second": round(read[0]),
        "plain_read_rows_per_cpu_second": round(read[1]),
        "file_bytes": size,
        **{name: getattr(args, name) for name in ("rows", "batch_size", "streams")},
        **about,
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
