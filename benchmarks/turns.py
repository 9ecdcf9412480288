"""Models with their steps in this process, one rank, which take turns on batches in memory."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist
from shape import FIELDS, HIDDEN, NAMES, RATE, Shape, ids
from torchrec import KeyedJaggedTensor

from sparta.models.batch import Batch, Slots
from sparta.models.embedding import Inputs
from sparta.models.zoo import ZOO
from sparta.service.step import FusedStep, RowStep, Step
from sparta.sharding.engines import TableOptimizer
from sparta.sharding.plan import make_plan
from sparta.sharding.quiet import silence
from sparta.sharding.rows.step import RowsStep
from sparta.sharding.shard import Sharded, shard

ONLY = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
"""What a launcher would set."""
CYCLE = 4
"""Steps of a turn; whole periods of every setting's `every`."""

Contestant = tuple[Step, Sequence[Batch]]
"""A step and what it is given, over and over."""


@contextmanager
def alone(threads: int, device: str = "cpu") -> Iterator[None]:
    """This process as the only rank."""
    silence()
    torch.set_num_threads(threads)
    os.environ.update(ONLY)
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        dist.destroy_process_group()
        for name in ONLY:
            del os.environ[name]


def built(setting: Mapping[str, object], shape: Shape) -> tuple[Sharded, Step]:
    """A model with its step; every one of a shape starts from the same weights.

    Args:
        setting: `name`, `engine` and `rho` of the tables' optimizer; `every` so many steps, of a `share` of the
            samples, in a `precision` Helen ascends; with the `dense` part or without.
    """
    torch.manual_seed(1)
    model = ZOO[shape.model](Inputs(shape.schema(shape.batch), shape.dim), hidden=HIDDEN)
    tables = model.embeddings.specs
    known = {key: value for key, value in setting.items() if key in ("name", "engine", "rho")}
    optimizers = {table.name: TableOptimizer(lr=RATE, **known) for table in tables}  # type: ignore[arg-type]
    plan = make_plan(
        tables,
        ranks=1,
        local_ranks=1,
        device=shape.device,
        batch_size=shape.batch,
        constraints={},
        optimizers=optimizers,
    )
    sharded = shard(model, plan, optimizers=optimizers, device=torch.device(shape.device), seed=1)
    dense = torch.optim.Adam(sharded.dense_parameters().values(), lr=RATE, fused=True)  # as a job's
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


def batches(shape: Shape, count: int) -> list[Batch]:
    """Global batches of Zipf ids."""
    rng, batch = np.random.default_rng(1), shape.batch
    made = []
    for number in range(count):
        sparse = KeyedJaggedTensor(
            keys=list(NAMES),
            values=torch.from_numpy(ids(rng, batch, shape).reshape(-1)),
            lengths=torch.ones(FIELDS * batch, dtype=torch.int32),
        )
        labels = torch.from_numpy(rng.integers(0, 2, (batch, 1)).astype(np.float32))
        slots = Slots(1, number + 1, 0, torch.ones(batch))
        made.append(Batch(sparse, torch.zeros(batch, 0), labels, slots).to(torch.device(shape.device)))
    return made


def measure(contestants: Mapping[str, Contestant], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of a step, by contestant, a value a round, of a cycle each."""
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        # Forth and back, so that none always follows the same one.
        for name, (step, given) in [*contestants.items()][:: 1 if turn % 2 else -1]:
            began = time.perf_counter()
            for number in range(CYCLE):
                last = step(given[(CYCLE * turn + number) % len(given)])
            last.item()  # a GPU is done with it then
            if turn:  # the first warms up
                taken[name].append((time.perf_counter() - began) * 1e3 / CYCLE)
    return taken
