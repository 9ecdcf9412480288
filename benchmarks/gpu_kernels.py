"""What the GPU's row kernels reach of the memory's bandwidth, part by part.

One group of tables, one id a bag, Zipf ids; a part's bytes are those that it cannot do without, each counted once:
what it reads and writes of pooled gradients, rows and states, and indices. The bandwidth to compare with is that
of a plain copy in the same run. `touch` sorts ids and has only its time. A step is compared with the plain kernels'
first. Needs torch and Triton alone; prints one JSON object.

    python benchmarks/gpu_kernels.py [--dtype float16] [--hot]

Under TRITON_INTERPRET=1 and `--device cpu` it runs too, with figures that mean nothing.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from measured import circumstances, ratio

from sparta.optim.rows.gpu import GPU
from sparta.optim.rows.group import BASES, Bags, Group, Kernels, Rates, Shape, Slots
from sparta.optim.rows.plain import PLAIN

RATE, EPS, SCALE = 1e-3, 1e-8, 1e-3


class Parts:
    """The parts of one Helen step over Adam, in their order."""

    def __init__(self, options: argparse.Namespace, kernels: Kernels) -> None:
        tables, rows, dim, samples = options.tables, options.rows, options.dim, options.batch
        self.kernels = kernels
        generator = torch.Generator().manual_seed(1)
        place = {"device": options.device}
        u = torch.rand(tables * samples, generator=generator, dtype=torch.float64)
        ids = (rows**u - 1).to(torch.int64).clamp_(max=rows - 1)  # P(id) ~ 1 / id
        if options.hot:
            ids.zero_()
        self.bags = Bags(ids.to(**place), torch.arange(tables * samples + 1, **place))
        self.pooled = torch.randn(samples, tables * dim, generator=generator).to(**place)
        weights = torch.zeros(tables * rows * dim, dtype=getattr(torch, options.dtype), **place)
        self.group = Group((Shape(rows, dim, dim),) * tables, weights, keys=tuple(range(tables)))
        self.stamps = torch.zeros(tables * rows, dtype=torch.int32, **place)
        self.slots = Slots(torch.zeros(weights.numel(), **place), torch.zeros(weights.numel(), **place))
        self.rates = Rates(
            torch.full((tables,), BASES.index("adam")),
            torch.full((tables,), RATE, dtype=torch.float64),
            torch.full((tables,), EPS, dtype=torch.float64),
            torch.tensor([[0.9, 0.999]] * tables, dtype=torch.float64),
        )

    def run(self, timed: Callable[[str, Callable[[], Any]], Any]) -> tuple[int, Tensor]:
        """One step; the rows it touched, and their gradient."""
        group, bags, kernels = self.group, self.bags, self.kernels
        touched = timed("touch", lambda: kernels.touch(group, bags, self.stamps))
        found = timed("reduce", lambda: kernels.reduce(group, bags, touched, self.pooled, None))
        scale = torch.full((len(touched.rows),), SCALE, dtype=torch.float64, device=self.pooled.device)
        saved = timed("perturb", lambda: kernels.perturb(group, touched, found.gradient, scale, None, step=1))
        timed("restore", lambda: kernels.restore(group, touched, saved))
        timed(
            "step",
            lambda: kernels.step(group, touched, found.gradient, None, saved, self.rates, self.slots, step=1),
        )
        return int(touched.bounds[-1]), found.gradient[: int(touched.packed[-1])]


def bytes_of(options: argparse.Namespace, touched: int) -> dict[str, int]:
    """What each part must move."""
    ids, dim = options.tables * options.batch, options.dim
    weight = getattr(torch, options.dtype).itemsize
    about = 3 * 8 * touched  # row, table, count or scale
    return {
        "reduce": ids * (4 * dim + 16) + touched * 4 * dim + about,
        "perturb": touched * dim * (4 + 3 * weight) + about,
        "restore": touched * dim * 2 * weight + about,
        "step": touched * dim * (4 + 2 * weight + 16) + about,
    }


def same(options: argparse.Namespace) -> float:
    """The largest difference to the plain kernels in a step: of gradients to the largest, of weights to the rate."""
    after, gradients = [], []
    for kernels in (GPU, PLAIN):
        parts = Parts(options, kernels)
        gradients.append(parts.run(lambda _, run: run())[1])
        after.append(parts.group.weights.float())
    return max(
        float((gradients[0] - gradients[1]).abs().max() / gradients[1].abs().max()),
        float((after[0] - after[1]).abs().max() / RATE),
    )


def measure(options: argparse.Namespace) -> tuple[dict[str, list[float]], int]:
    """Milliseconds of every part and of the copy, a value a repetition; and the rows touched."""
    parts = Parts(options, GPU)
    source = torch.zeros(options.copied // 4, device=options.device)
    target = torch.empty_like(source)
    cuda = source.device.type == "cuda"
    taken: dict[str, list[float]] = {}

    def timed(name: str, run: Callable[[], Any]) -> Any:
        if cuda:
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(1_000_000)  # type: ignore[no-untyped-call]  # so that launching is not measured
            began.record()  # type: ignore[no-untyped-call]
            result = run()
            ended.record()  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
            taken.setdefault(name, []).append(began.elapsed_time(ended))  # type: ignore[no-untyped-call]
            return result
        start = time.perf_counter()
        result = run()
        taken.setdefault(name, []).append((time.perf_counter() - start) * 1e3)
        return result

    touched = 0
    for turn in range(options.repeats + 2):
        if turn == 2:
            taken.clear()  # compiled and warm
        timed("copy", lambda: target.copy_(source))
        touched, _ = parts.run(timed)
    return taken, touched


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tables", type=int, default=26)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of each table")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--batch", type=int, default=65_536)
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--hot", action="store_true", help="one id in every sample")
    parser.add_argument("--copied", type=int, default=2**30, help="bytes of the copy to compare with")
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    small = argparse.Namespace(**{**vars(options), "rows": 1000, "batch": min(options.batch, 4096)})
    difference = same(small)
    taken, touched = measure(options)
    median = {name: statistics.median(ms) for name, ms in taken.items()}
    moved = bytes_of(options, touched)
    copies = [2 * options.copied / ms for ms in taken["copy"]]
    report = {
        "ratios": {
            f"bandwidth of {name} to a copy's, {options.dtype}": ratio(
                [moved[name] / ms for ms in taken[name]], copies
            )
            for name in moved
        },
        "milliseconds": {name: round(ms, 4) for name, ms in median.items()},
        "copy_gb_per_s": round(2 * options.copied / median["copy"] / 1e6, 1),
        "largest_difference_to_plain": difference,
        "touched_rows": touched,
        **{name: getattr(options, name) for name in ("tables", "rows", "dim", "batch", "dtype", "hot")},
        "device": torch.cuda.get_device_name() if options.device == "cuda" else options.device,
        **circumstances(),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
