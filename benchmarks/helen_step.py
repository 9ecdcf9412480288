"""What a step costs: Helen and its cheaper settings against the plain step, and that against FBGEMM's.

DeepFM, 39 categorical fields of dim 16 with their 1-wide twins, MLP 3 x 400, batch 4096, Zipf ids, one process.
All settings take turns on the same batches, so that whatever else the machine does hits all alike; prints one
JSON object: median milliseconds, ratios within the run, growth with the rows of the tables, machine.

    python benchmarks/helen_step.py [--rounds 10] [--rows 1000000]
    python benchmarks/helen_step.py --device cuda --model dlrm --dim 128 --batch 65536 --rows 4000000
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torchrec import KeyedJaggedTensor

sys.path.insert(0, str(Path(__file__).parent))
from measured import circumstances, ratio

from sparta.launcher.local import MEMORY_AND_THREADS
from sparta.models.batch import Batch, Slots
from sparta.models.deepfm import DeepFM
from sparta.models.dlrm import DLRM
from sparta.models.embedding import Inputs
from sparta.models.schema import Feature, Schema
from sparta.service.step import FusedStep, RowStep, Step
from sparta.sharding.engines import TableOptimizer
from sparta.sharding.plan import make_plan
from sparta.sharding.quiet import silence
from sparta.sharding.rows.step import RowsStep
from sparta.sharding.shard import Sharded, shard

FIELDS, HIDDEN = 39, (400, 400, 400)
RATE = 1e-3
MODELS = {"deepfm": DeepFM, "dlrm": DLRM}

SETTINGS: dict[str, dict[str, object]] = {
    "fbgemm rowwise_adagrad": {"name": "rowwise_adagrad", "engine": "fbgemm"},
    "rows rowwise_adagrad": {"name": "rowwise_adagrad"},
    "adam": {"name": "adam"},
    "helen": {"name": "helen"},
    "helen, ascend_every 2": {"name": "helen", "rho": 0.02, "every": 2},
    "helen, ascend_every 4": {"name": "helen", "rho": 0.02, "every": 4},
    "helen, ascend_fraction 1/4": {"name": "helen", "share": 4},
    "helen, ascend_precision bf16": {"name": "helen", "precision": "bf16"},
    "helen, bf16, ascend_every 2": {"name": "helen", "rho": 0.02, "precision": "bf16", "every": 2},
    "helen, perturb_dense": {"name": "helen", "dense": True},
    "sam": {"name": "sam"},
    "asam": {"name": "asam"},
}
ON_GPUS: dict[str, dict[str, object]] = {"fbgemm adam": {"name": "adam", "engine": "fbgemm"}}
"""FBGEMM has no Adam for CPUs."""


def trainer(setting: dict[str, object], rows: int, options: argparse.Namespace) -> Step:
    """The step of a model."""
    return built(setting, rows, options)[1]


def built(setting: dict[str, object], rows: int, options: argparse.Namespace) -> tuple[Sharded, Step]:
    """A model with its step; every one starts from the same weights."""
    schema = Schema(
        sparse=tuple(Feature(name=f"C{i}", rows=max(2, rows // FIELDS)) for i in range(1, FIELDS + 1)),
        labels=("label",),
        splits={"train": options.batch},
    )
    torch.manual_seed(1)
    model = MODELS[options.model](Inputs(schema, options.dim), hidden=HIDDEN)
    tables = model.embeddings.specs
    known = {key: value for key, value in setting.items() if key in ("name", "engine", "rho")}
    optimizers = {table.name: TableOptimizer(lr=RATE, **known) for table in tables}  # type: ignore[arg-type]
    plan = make_plan(
        tables,
        ranks=1,
        local_ranks=1,
        device=options.device,
        batch_size=options.batch,
        constraints={},
        optimizers=optimizers,
    )
    sharded = shard(model, plan, optimizers=optimizers, device=torch.device(options.device), seed=1)
    dense = torch.optim.Adam(sharded.dense_parameters().values(), lr=RATE)
    if setting.get("engine") == "fbgemm":
        return sharded, FusedStep(sharded, dense, ranks=1)
    step = RowsStep(
        sharded.module,
        dense,
        perturb_dense=bool(setting.get("dense")),
        ascend_every=setting.get("every", 1),  # type: ignore[arg-type]
        ascend_precision=setting.get("precision", "fp32"),  # type: ignore[arg-type]
    )
    return sharded, RowStep(sharded, dense, step, ranks=1, every=setting.get("share", 1))  # type: ignore[arg-type]


def batches(rows: int, count: int, options: argparse.Namespace) -> list[Batch]:
    """Global batches of Zipf ids."""
    rng, batch = np.random.default_rng(1), options.batch
    made = []
    for number in range(count):
        ids = np.minimum(rng.zipf(1.2, FIELDS * batch) - 1, max(2, rows // FIELDS) - 1).astype(np.int64)
        sparse = KeyedJaggedTensor(
            keys=[f"C{i}" for i in range(1, FIELDS + 1)],
            values=torch.from_numpy(ids),
            lengths=torch.ones(FIELDS * batch, dtype=torch.int32),
        )
        labels = torch.from_numpy(rng.integers(0, 2, (batch, 1)).astype(np.float32))
        slots = Slots(1, number + 1, 0, torch.ones(batch))
        made.append(Batch(sparse, torch.zeros(batch, 0), labels, slots).to(torch.device(options.device)))
    return made


def measure(steps: dict[str, Step], given: list[Batch], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of a cycle of 4 steps / 4, by setting, in turns; a cycle holds whole periods of `every`."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            for number in range(4):
                last = step(given[(4 * turn + number) % len(given)])
            last.item()  # a GPU is done with it then
            if turn:  # the first warms up
                taken[name].append((time.perf_counter() - began) * 1e3 / 4)
    return taken


def growth(rounds: int, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """How the default Helen's step grows from 100k to 10M rows, and adam's."""
    found = {}
    for name in ("adam", "helen"):
        small, large = 100_000, 10_000_000
        steps = {str(rows): trainer(SETTINGS[name], rows, options) for rows in (small, large)}
        # The same ids in both, so that only the size of the tables differs.
        given = batches(small, 8, options)
        taken = measure(steps, given, rounds)
        found[f"{name}, 10M table rows to 100k"] = ratio(taken[str(large)], taken[str(small)])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model", choices=tuple(MODELS), default="deepfm")
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    gpu = options.device == "cuda"
    silence()
    torch.set_num_threads(options.threads)
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(
            "nccl" if gpu else "gloo", init_method=f"file://{folder}/store", rank=0, world_size=1
        )
        settings = SETTINGS | ON_GPUS if gpu else SETTINGS
        steps = {name: trainer(setting, options.rows, options) for name, setting in settings.items()}
        taken = measure(steps, batches(options.rows, 16, options), options.rounds)
        del steps
        to_adam = {name: ratio(ms, taken["adam"]) for name, ms in taken.items() if name != "adam"}
        theirs = taken["fbgemm rowwise_adagrad"]
        ratios = {
            **{f"{name} to adam": one for name, one in to_adam.items()},
            "rows rowwise_adagrad to fbgemm's": ratio(taken["rows rowwise_adagrad"], theirs),
            **growth(max(3, options.rounds // 2), options),
        }
        if gpu:
            ratios |= {
                f"{name} to fbgemm adam": ratio(ms, taken["fbgemm adam"]) for name, ms in taken.items()
            }
        report = {
            "ratios": ratios,
            "to_adam": {"adam": 1.0, **{name: one["median"] for name, one in to_adam.items()}},
            "milliseconds": {name: round(statistics.median(ms), 1) for name, ms in taken.items()},
            "examples_per_second": {
                name: round(options.batch * 1e3 / statistics.median(ms)) for name, ms in taken.items()
            },
            "table_rows": options.rows,
            **{name: getattr(options, name) for name in ("model", "dim", "batch", "threads", "device")},
            **circumstances(),
        }
        print(json.dumps(report, indent=2))
        dist.destroy_process_group()


if __name__ == "__main__":
    if (
        not MEMORY_AND_THREADS.keys() <= os.environ.keys()
    ):  # as the launcher gives them; read when torch loads
        os.execve(sys.executable, sys.orig_argv, {**MEMORY_AND_THREADS, **os.environ})
    main()
