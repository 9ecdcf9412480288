"""`check`: does this job fit this dataset, on these ranks? In seconds, before anything starts."""

import inspect
import traceback
from collections import Counter

import torch
from torchrec import KeyedJaggedTensor

from sparta.models.batch import Batch, Slots
from sparta.models.errors import ConfigError
from sparta.models.schema import Schema
from sparta.service import build
from sparta.service.config import Job
from sparta.service.world import World, device_for
from sparta.sharding.device import usable_gpus
from sparta.sharding.human import human
from sparta.sharding.plan import Plan
from sparta.sharding.tables import tables_of


def check(job: Job) -> list[str]:
    """What the job will do, a line each.

    Raises:
        SpartaError: the first thing that is wrong.
    """
    schema = build.schema(job)
    check_forward(job, schema)
    model = build.model(job, schema)
    tables = tables_of(model)
    # A throw-away copy of the dense part's names is enough to try the optimizer's arguments.
    build.dense_optimizer(job, dict(dense_parameters(model)))
    # A job for GPUs may be checked where there are none.
    device = "cuda" if job.train.device == "cuda" else device_for(job.train.device, job.train.ranks)
    plan = build.plan(job, model, ranks=job.train.ranks, local_ranks=job.train.ranks, device=device)
    alone = World(rank=0, ranks=1, local_ranks=1, device=torch.device("cpu"))
    steps = build.train_loader(job, schema, alone).steps
    for split in ("valid", "test"):
        if split in schema.splits:
            build.scoring_loader(job.data.path, schema, split, job.data.batch_size, alone)
    total = build.total_steps(job, steps)
    rows = ", ".join(f"{split} {rows:,}" for split, rows in schema.splits.items())
    dense = sum(parameter.numel() for _, parameter in dense_parameters(model))
    weights = sum(table.rows * table.dim for table in tables)
    return [
        f"{job.name}: {job.model.name}, {dense:,} dense weights, {len(tables)} tables with {weights:,} weights",
        f"data: {job.data.path}: {rows} rows; labels {', '.join(schema.labels)}",
        f"training: {total:,} steps, {steps:,} an epoch, of {job.data.batch_size:,} samples on {job.train.ranks} ranks",
        f"plan: {placements(plan)}; at most {human(max(plan.rank_bytes(r) for r in range(plan.ranks)))} a rank",
        "ok"
        if device == "cpu" or (gpus := usable_gpus()) >= job.train.ranks
        else f"ok on a machine with a GPU for each rank: train.device is cuda, and this one has {gpus}",
    ]


def check_forward(job: Job, schema: Schema) -> None:
    """Run the model once on three empty samples: a mistake in it shows here, not after the ranks have started.

    Raises:
        ConfigError: the model raises, or its logits have another shape than (samples, tasks).
    """
    small = schema.model_copy(
        update={"sparse": tuple(f.model_copy(update={"rows": min(f.rows, 2)}) for f in schema.sparse)}
    )
    model = build.model(job, small).to_empty(device="cpu")
    samples, tasks = 3, len(schema.labels)
    empty = torch.zeros(samples * len(schema.sparse), dtype=torch.int64)
    batch = Batch(
        sparse=KeyedJaggedTensor([f.name for f in schema.sparse], empty[:0], lengths=empty),
        dense=torch.zeros(samples, len(schema.dense)),
        labels=torch.zeros(samples, tasks),
        slots=Slots(seed=0, step=1, first=0, weights=torch.ones(samples)),
    )
    try:
        found = tuple(model(batch).shape)
    except Exception as error:  # whatever a user's own model raises
        place = traceback.extract_tb(error.__traceback__)[-1]
        if isinstance(error, RuntimeError) and "torch/distributed/" in place.filename:
            raise  # batch norm has lost another rank: no fault of the model
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == _file(model)]
        place = own[-1] if own else place
        raise ConfigError(
            f"model.name: {job.model.name} fails on {samples} samples at {place.filename}:{place.lineno} "
            f"({type(error).__name__}: {error}); mend it"
        ) from error
    if found != (samples, tasks):
        raise ConfigError(
            f"model.name: {job.model.name} gives logits {found} for {samples} samples of {tasks} tasks; "
            f"its forward must return (samples, tasks), here {(samples, tasks)}"
        )


def _file(model: torch.nn.Module) -> str | None:
    return inspect.getsourcefile(type(model))


def placements(plan: Plan) -> str:
    """How many tables go which way, such as `24 table_wise, 2 row_wise`."""
    kinds = Counter(table.sharding for table in plan.tables)
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())


def dense_parameters(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    """The parameters that are not in a table (tables are still on the meta device)."""
    return [(name, parameter) for name, parameter in model.named_parameters() if not parameter.is_meta]
