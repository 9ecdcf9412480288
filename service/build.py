"""From settings to objects: the only place that has seen both.

Everything below takes plain keyword arguments; everything here is a function of a `Job`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import Tensor, nn

from sparta.models import zoo
from sparta.models.embedding import WIDE, Inputs, Table
from sparta.models.errors import ConfigError
from sparta.models.schema import Schema, load_schema
from sparta.optim.schedule import EarlyStop, Plateau, Schedule
from sparta.service.config import Job, TableSettings
from sparta.service.data.loader import Loader
from sparta.service.data.partitions import Partitions
from sparta.service.data.vocab import load_vocabulary
from sparta.service.feed import Arrivals, Epochs, Feed
from sparta.service.run import RunDirectory
from sparta.service.run_settings import EarlyStopSettings
from sparta.service.step import FusedStep, RowStep, Step
from sparta.service.world import World
from sparta.sharding.engines import TableOptimizer
from sparta.sharding.plan import Plan, load_plan, make_plan
from sparta.sharding.rows.step import RowsStep
from sparta.sharding.shard import Sharded, shard
from sparta.sharding.tables import tables_of

DENSE_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
}

FUSED = ("adam", "adamw", "sgd", "adagrad")
"""Those that torch also has as one kernel a parameter, which takes less than half the time."""
KERNELS = ("fused", "foreach", "differentiable")
"""Arguments by which the user chooses how the step is computed."""

GIB = 1 << 30
FOR_TABLES = 0.85
"""Of a GPU's memory, where nothing else is said; the rest is for activations and the dense part."""


def schema(job: Job) -> Schema:
    """The dataset's schema, checked against what the job names in it."""
    found = load_schema(job.data.path)
    features = [feature.name for feature in found.sparse]
    for name in job.tables:
        _known(name, features, "tables")
    for name in job.sharding.constraints:
        _known(name, features, "sharding.constraints")
    group = job.train.gauc_by
    if group is not None:
        _known(group, features, "train.gauc_by", twins=False)
        if found.feature(group).multi:
            raise ConfigError(f"train.gauc_by: {group!r} is multi-valued; group by a single-valued feature")
    if not found.splits.get("train"):
        raise ConfigError(
            f"{job.data.path}: has no training rows, only {', '.join(found.splits) or 'a schema'}; "
            "name files.train in the spec and prepare it again"
        )
    if job.train.early_stop and "valid" not in found.splits:
        raise ConfigError(
            f"train.early_stop: {job.data.path} has no valid split; prepare one or drop early_stop"
        )
    if job.optim.plateau and "valid" not in found.splits:
        raise ConfigError(f"optim.plateau: {job.data.path} has no valid split; prepare one or drop plateau")
    for metric in (job.train.early_stop, job.optim.plateau):
        if metric and metric.metric == "gauc" and group is None:
            raise ConfigError("metric gauc needs train.gauc_by, the feature that groups the rows")
    return found


def model(job: Job, of: Schema) -> nn.Module:
    """The model with its tables on the meta device; dense weights depend on the seed only."""
    dims = {name: table.dim for name, table in job.tables.items() if table.dim is not None}
    pooling = {name: table.pooling for name, table in job.tables.items() if table.pooling is not None}
    inputs = Inputs(of, job.model.embedding_dim, dims, pooling)
    torch.manual_seed(job.train.seed)
    built = zoo.build(job.model.name, inputs, job.model.args)
    names = {table.name for table in tables_of(built)}
    for name in job.tables:
        if name.endswith(WIDE) and name not in names:
            raise ConfigError(
                f"tables: {name!r} is not there, for {job.model.name} has no first-order tables; "
                "drop it or name the feature"
            )
    return built


def table_settings(job: Job, table: Table) -> TableSettings:
    """A table's own settings: its feature's, and over them its own where it is a named twin."""
    merged = job.tables.get(table.feature, TableSettings())
    if table.name.endswith(WIDE) and table.name in job.tables:
        own = job.tables[table.name].model_dump(exclude_none=True)
        merged = merged.model_copy(update=own)
    return merged


def table_optimizers(job: Job, tables: Sequence[Table]) -> dict[str, TableOptimizer]:
    """The optimizer of every table, by table name."""
    default = job.optim.tables
    chosen = {}
    for table in tables:
        own = table_settings(job, table)
        ours = {
            "name": own.optimizer,
            **{
                key: getattr(own, key)
                for key in ("lr", "rho", "xi", "norm", "frequency", "weight_decay", "l2")
            },
        }
        chosen[table.name] = TableOptimizer(
            **{
                field.name: given
                if (given := ours.get(field.name)) is not None
                else getattr(default, field.name)
                for field in fields(TableOptimizer)
                if field.name != "betas"
            }
        )
    return chosen


def row_counts(job: Job, tables: Sequence[Table]) -> dict[str, Tensor]:
    """Training occurrences of every row, (rows,) int64, of tables whose radius goes by the whole dataset."""
    chosen = table_optimizers(job, tables)
    wanted = [t for t in tables if chosen[t.name].rule == "helen" and chosen[t.name].frequency == "dataset"]
    return {
        table.name: torch.from_numpy(load_vocabulary(job.data.path, table.feature).counts) for table in wanted
    }


def plan(
    job: Job,
    of: nn.Module,
    *,
    ranks: int,
    local_ranks: int,
    device: str,
    memory_gb: float | None = None,
    forced: Path | None = None,
) -> Plan:
    """The plan that is forced, by the caller or by the job, or else the planner's."""
    limit = memory_gb or job.sharding.memory_gb
    memory_bytes = int(limit * GIB) if limit else None
    if memory_bytes is None and device == "cuda" and torch.cuda.is_available():
        memory_bytes = int(FOR_TABLES * torch.cuda.get_device_properties(0).total_memory)
    tables = tables_of(of)
    optimizers = table_optimizers(job, tables)
    if forced is None and job.sharding.plan != "auto":
        forced = Path(job.sharding.plan)
    if forced is not None:
        return load_plan(
            forced,
            tables,
            ranks=ranks,
            local_ranks=local_ranks,
            device=device,
            batch_size=job.data.batch_size,
            optimizers=optimizers,
            memory_bytes=memory_bytes,
        )
    return make_plan(
        tables,
        ranks=ranks,
        local_ranks=local_ranks,
        device=device,
        batch_size=job.data.batch_size,
        constraints=job.sharding.constraints,
        optimizers=optimizers,
        memory_bytes=memory_bytes,
    )


def sharded(job: Job, built: nn.Module, by: Plan, world: World) -> Sharded:
    """The model with its tables on their ranks."""
    tables = tables_of(built)
    stds = {table.name: table_settings(job, table).init_std for table in tables}
    return shard(
        built,
        by,
        optimizers=table_optimizers(job, tables),
        device=world.device,
        seed=job.train.seed,
        init_std=job.model.init_std,
        init_stds={name: std for name, std in stds.items() if std is not None},
        row_counts=row_counts(job, tables),
    )


def dense_optimizer(job: Job, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of everything that is not in a table.

    Raises:
        ConfigError: `optim.dense.args` do not fit the class.
    """
    settings = job.optim.dense
    kind, arguments = DENSE_OPTIMIZERS[settings.name], dict(settings.args)
    if settings.name in FUSED and not arguments.keys() & set(KERNELS):
        arguments["fused"] = True
    try:
        return kind(list(parameters.values()), lr=settings.lr, **arguments)  # type: ignore[call-arg]
    except (TypeError, ValueError, IndexError, RuntimeError) as error:  # whatever torch says of them
        reason = str(error).splitlines()[0]
        raise ConfigError(f"optim.dense.args: {kind.__name__} says: {reason}") from error


def step(job: Job, of: Sharded, world: World) -> Step:
    """What trains on a batch: one pass or two, by the tables' engine and optimizer."""
    tables, clip_norm = job.optim.tables, job.optim.dense.clip_norm
    dense, bf16 = dense_optimizer(job, of.dense_parameters()), job.train.precision == "bf16"
    if tables.engine == "fbgemm":
        return FusedStep(of, dense, ranks=world.ranks, clip_norm=clip_norm, bf16=bf16)
    rows = RowsStep(
        of.module,
        dense,
        perturb_dense=tables.perturb_dense,
        rho=tables.rho if tables.perturb_dense or tables.name in ("sam", "asam") else None,
        eta=tables.eta if tables.name == "asam" else None,
        ascend_every=tables.ascend_every,
        ascend_precision=tables.ascend_precision,
        clip_norm=clip_norm,
    )
    return RowStep(of, dense, rows, ranks=world.ranks, every=round(1 / tables.ascend_fraction), bf16=bf16)


def train_loader(job: Job, of: Schema, world: World, folder: Path | None = None) -> Loader:
    """Shuffled batches of the train split, or of that of another `folder`."""
    return Loader(
        folder or job.data.path,
        of,
        "train",
        batch_size=job.data.batch_size,
        streams=job.data.streams,
        rank=world.rank,
        ranks=world.ranks,
        seed=job.train.seed,
        prefetch=job.data.prefetch,
        pin=world.device.type == "cuda",
        skip_bad_rows=job.tolerate.bad_rows > 0,
    )


def feed(job: Job, of: Schema, run: RunDirectory, world: World) -> Feed:
    """The epochs of the dataset, or the partitions of the watched folder."""
    watch = job.data.watch
    if watch is None:
        loader = train_loader(job, of, world)
        return Epochs(loader, total_steps(job, loader.steps))
    return Arrivals(
        Partitions(Path(watch.folder), job.data.path, run.partitions, settle_seconds=watch.settle_seconds),
        lambda folder: train_loader(job, load_schema(folder), world, folder),
        world,
        poll_seconds=watch.poll_seconds,
        idle_seconds=watch.idle_seconds,
        max_steps=job.train.max_steps,
        bad_partitions=job.tolerate.bad_partitions,
    )


def scoring_loader(
    folder: str | Path, of: Schema, split: str, batch_size: int, world: World, *, skip_bad_rows: bool = False
) -> Loader:
    """A split in file order, every row once: rank r reads the r-th contiguous share of the rows."""
    share = -(-batch_size // world.ranks)
    return Loader(
        folder,
        of,
        split,
        batch_size=share * world.ranks,
        streams=world.ranks,
        rank=world.rank,
        ranks=world.ranks,
        shuffle=False,
        pin=world.device.type == "cuda",
        skip_bad_rows=skip_bad_rows,
    )


def total_steps(job: Job, steps_per_epoch: int) -> int:
    """Where training stops, at most."""
    steps = steps_per_epoch * job.train.epochs
    return steps if job.train.max_steps is None else min(steps, job.train.max_steps)


def schedule(job: Job, total_steps: int | None) -> Schedule:
    """The factor on the learning rates as a function of the step."""
    settings = job.optim.schedule
    return Schedule(
        warmup=settings.warmup, decay=settings.decay, total_steps=total_steps or 0, floor=settings.floor
    )


def watch(job: Job) -> EarlyStop:
    """What decides which evaluation is the best, whether or not it may end the run."""
    settings = job.train.early_stop or EarlyStopSettings()
    return EarlyStop(metric=settings.metric, patience=settings.patience, min_delta=settings.min_delta)


def plateau(job: Job) -> Plateau | None:
    """Reduction of the learning rates when validation stalls, if asked for."""
    settings = job.optim.plateau
    if settings is None:
        return None
    return Plateau(
        metric=settings.metric, factor=settings.factor, patience=settings.patience, floor=settings.floor
    )


def _known(name: str, features: Sequence[str], where: str, *, twins: bool = True) -> None:
    feature = name.removesuffix(WIDE) if twins else name
    if feature not in features:
        near = get_close_matches(feature, features, 1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; features: {', '.join(features)}"
        raise ConfigError(f"{where}: {name!r} is no categorical feature of the dataset{hint}")
