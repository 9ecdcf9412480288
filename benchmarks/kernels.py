"""What the CPU's row kernels cost, against FBGEMM's fused row-wise Adagrad and against torch.unique + index_add_.

One group of tables, one id a bag, Zipf ids: finding the touched rows (`touch`, once a step), pass 1 (`reduce` and
`perturb`) and pass 2 (`reduce` and `step`, which also restores). All contestants take turns within every
repetition; prints one JSON object: median milliseconds, ratios as medians within the repetitions, machine.
FBGEMM's figure is its backward alone, which finds the rows, sums and steps; its lookup is not counted. Row-wise
Adagrad is what a plain loop has, and Adam FBGEMM has none on a CPU; which of its two is faster, with an accumulator a
row or an element, depends on the processor (milliseconds of two threads: 44 and 18 on an Intel Xeon, 4 and 14 on an
AMD EPYC). So whole steps are held against the faster one of every turn.

    python benchmarks/kernels.py [--threads 1]

What helped (one thread, milliseconds): unsigned indices, as numba's test for negative ones kept loops from
becoming vector instructions (touch 2.7 -> 1.2, reduce 2.5 -> 1.7, perturb 2.8 -> 1.2, Adam's step 9.9 -> 4.3);
asking for rows ahead of time (Adam's step 5.3 -> 2.3, row-wise Adagrad's 2.6 -> 1.3, perturb 1.3 -> 1.1).

With two threads what torch ran just before matters: its OpenMP threads go on spinning for a while and hold the
core that ours need (perturb 3.4 in place of 1.0 after a large torch operation). So both sides run with what our
launcher sets (GOMP_SPINCOUNT, among others). OMP_WAIT_POLICY=passive also ends that, but FBGEMM's backward then took
41 in place of 27.

What did not: asking ahead for pooled gradients or accumulators of `reduce`; loops over columns in fixed
blocks of 16 and 4 (reduce 1.7 -> 2.2); the sum of squares in a loop of its own for ASAM. Buffers are made anew
at every call: malloc gives the same memory back, and no call met a page fault.
"""

import argparse
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from measured import as_launched, circumstances, ratio

from sparta.optim.rows.cpu import CPU
from sparta.optim.rows.group import BASES, Bags, Group, Rates, Shape, Slots, Sum, Touched

SCALE, RATE, EPS = 1e-3, 0.01, 1e-8
ROWWISE, ELEMENTWISE = "fbgemm: backward, rowwise_adagrad", "fbgemm: backward, adagrad"
FASTER = "fbgemm: backward, the faster of its two"


def ids_of(tables: int, rows: int, samples: int, generator: torch.Generator) -> Tensor:
    """(tables * samples,) int64 with P(id) ~ 1 / id."""
    u = torch.rand(tables * samples, generator=generator, dtype=torch.float64)
    return (rows**u - 1).to(torch.int64).clamp_(max=rows - 1)


class Ours:
    """One base optimizer's step in its parts."""

    def __init__(self, base: str, tables: int, rows: int, dim: int, samples: int) -> None:
        self.group = Group((Shape(rows, dim, dim),) * tables, torch.randn(tables * rows * dim) * 0.01)
        self.offsets = torch.arange(tables * samples + 1)
        self.scratch = torch.zeros(tables * rows, dtype=torch.int32)
        self.rates = Rates(
            torch.full((tables,), BASES.index(base)),
            torch.full((tables,), RATE, dtype=torch.float64),
            torch.full((tables,), EPS, dtype=torch.float64),
            torch.tensor([[0.9, 0.999]] * tables, dtype=torch.float64),
        )
        size = self.group.elements if base == "adam" else 0
        self.slots = Slots(torch.zeros(size), torch.zeros(size), torch.zeros(tables * rows))
        self.dim = dim

    def touch(self, ids: Tensor) -> tuple[Bags, Touched]:
        bags = Bags(ids, self.offsets)
        return bags, CPU.touch(self.group, bags, self.scratch)

    def first(self, bags: Bags, touched: Touched, pooled: Tensor, scale: Tensor) -> Tensor:
        found = CPU.reduce(self.group, bags, touched, pooled, None)
        return CPU.perturb(self.group, touched, found.gradient, scale, None, step=1)

    def second(self, bags: Bags, touched: Touched, pooled: Tensor, means: Tensor, saved: Tensor) -> Sum:
        found = CPU.reduce(self.group, bags, touched, pooled, None)
        CPU.step(self.group, touched, found.gradient, means, saved, self.rates, self.slots, step=1)
        return found


def fbgemm(base: str, tables: int, rows: int, dim: int) -> Any:
    """FBGEMM's tables of the same shapes, with an optimizer fused into their backward."""
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode, EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    return SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, dim, EmbeddingLocation.HOST, ComputeDevice.CPU)] * tables,
        optimizer=EmbOptimType[f"EXACT_{base.upper()}"],
        learning_rate=RATE,
        eps=EPS,
        bounds_check_mode=BoundsCheckMode.NONE,
    )


def unique_and_add(ids: Tensor, first_rows: Tensor, pooled: Tensor, dim: int) -> Tensor:
    """What plain torch takes to find the rows and sum their gradients; it neither perturbs nor steps."""
    rows, where = torch.unique(ids + first_rows, return_inverse=True)
    by_id = pooled.view(len(pooled), -1, dim).transpose(0, 1).reshape(-1, dim)
    return torch.zeros(len(rows), dim).index_add_(0, where, by_id)


def measure(options: argparse.Namespace) -> dict[str, list[float]]:
    """Milliseconds of every part, a value a repetition."""
    tables, rows, dim, samples = options.tables, options.rows, options.dim, options.batch
    generator = torch.Generator().manual_seed(1)
    ours = {base: Ours(base, tables, rows, dim, samples) for base in ("adam", "rowwise_adagrad")}
    theirs = {base: fbgemm(base, tables, rows, dim) for base in ("rowwise_adagrad", "adagrad")}
    scales = torch.full((tables * samples,), SCALE, dtype=torch.float64)
    first_rows = (torch.arange(tables) * rows).repeat_interleave(samples)
    taken: dict[str, list[float]] = {}
    for turn in range(options.repeats + 3):
        ids = ids_of(tables, rows, samples, generator)
        pooled = torch.randn(samples, tables * dim, generator=generator)

        def timed(name: str, run: Callable[[], Any], kept: bool = turn >= 3) -> Any:
            began = time.perf_counter()
            result = run()
            if kept:
                taken.setdefault(name, []).append((time.perf_counter() - began) * 1e3)
            return result

        for base, one in ours.items():
            bags, touched = timed(f"{base}: touch", lambda one=one, ids=ids: one.touch(ids))
            given, scale = (bags, touched, pooled), scales[: len(touched.rows)]
            saved = timed(f"{base}: pass 1", lambda one=one, a=given, s=scale: one.first(*a, s))
            timed(f"{base}: pass 2", lambda one=one, a=given, s=scale, w=saved: one.second(*a, s, w))
        for base, other in theirs.items():
            out = other(ids, torch.arange(tables * samples + 1))
            timed(f"fbgemm: backward, {base}", lambda out=out, pooled=pooled: out.backward(pooled))
        timed(
            "torch: unique and index_add",
            lambda ids=ids, pooled=pooled: unique_and_add(ids, first_rows, pooled, dim),
        )
    taken[FASTER] = [min(pair) for pair in zip(taken[ROWWISE], taken[ELEMENTWISE], strict=True)]
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tables", type=int, default=26)
    parser.add_argument("--rows", type=int, default=100_000, help="of each table")
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the CPU build of FBGEMM says when it is imported
        taken = measure(options)

    def share(to: str, *parts: str) -> dict[str, Any]:
        return ratio([sum(each) for each in zip(*(taken[name] for name in parts), strict=True)], taken[to])

    report = {
        "ratios": {
            **{
                f"finding rows and both passes with {base} to FBGEMM's backward": share(
                    FASTER, f"{base}: touch", f"{base}: pass 1", f"{base}: pass 2"
                )
                for base in ("adam", "rowwise_adagrad")
            },
            "a plain step with rowwise_adagrad to FBGEMM's backward with it": share(
                ROWWISE, "rowwise_adagrad: touch", "rowwise_adagrad: pass 2"
            ),
            "FBGEMM's backward with adagrad to that with rowwise_adagrad": share(ROWWISE, ELEMENTWISE),
            "touch and pass 1 to unique and index_add": share(
                "torch: unique and index_add", "adam: touch", "adam: pass 1"
            ),
        },
        "milliseconds": {name: round(statistics.median(ms), 2) for name, ms in taken.items()},
        **{name: getattr(options, name) for name in ("tables", "rows", "dim", "batch", "threads")},
        "ids": options.tables * options.batch,
        **circumstances(),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    as_launched()
    main()
