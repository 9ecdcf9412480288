"""The job file: what a user may write, checked before anything starts. No torch here.

A job is YAML; every field's docstring says what it means and its unit. Only `service/build.py` turns these
settings into objects.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from sparta.models.errors import ConfigError
from sparta.models.names import misspelt
from sparta.models.storage import is_url
from sparta.service.data_settings import DataSettings
from sparta.service.job_text import read_text, write_text
from sparta.service.kubernetes_settings import KubernetesSettings
from sparta.service.run_settings import CheckpointSettings, MetricsSettings, TolerateSettings, TrainSettings
from sparta.service.settings import Settings, explain

TableOptimizerName = Literal[
    "sgd", "adagrad", "rowwise_adagrad", "adam", "nadam", "radam", "helen", "sam", "asam"
]
DenseOptimizerName = Literal["adam", "adamw", "nadam", "radam", "sgd", "adagrad"]
ShardingType = Literal["table_wise", "row_wise", "column_wise", "table_row_wise", "data_parallel"]
ASCENT = (
    "base",
    "rho",
    "xi",
    "norm",
    "frequency",
    "count_missing",
    "eta",
    "perturb_dense",
    "ascend_every",
    "ascend_fraction",
    "ascend_precision",
)
"""Keys that only optimizers in two passes read."""
READS = {
    "helen": set(ASCENT) - {"eta"},
    "sam": {"base", "rho", "ascend_every", "ascend_fraction", "ascend_precision"},
    "asam": {"base", "rho", "eta", "ascend_every", "ascend_fraction", "ascend_precision"},
}
"""Which of them each reads."""
TWO_PASS = tuple(READS)


class ModelSettings(Settings):
    name: str
    """dnn, wide_deep, pnn, deepfm, dcn, dcn_v2, dlrm, or `package.module:Class`."""
    embedding_dim: PositiveInt = 16
    init_std: NonNegativeFloat = 1e-4
    """Standard deviation of the tables' initial weights."""
    args: Mapping[str, Any] = {}
    """Keyword arguments of the model's constructor."""

    @field_validator("name")
    @classmethod
    def _is_one(cls, name: str) -> str:
        if complaint := misspelt(name):
            raise ValueError(complaint)
        return name


class TableSettings(Settings):
    """What one table does differently; a feature's settings hold for its 1-wide twin `<name>.wide` too."""

    dim: PositiveInt | None = None
    pooling: Literal["sum", "mean"] | None = None
    """Of a multi-valued feature; mean if not said."""
    init_std: NonNegativeFloat | None = None
    optimizer: TableOptimizerName | None = None
    """A base optimizer alone (adam, nadam, radam, rowwise_adagrad, sgd) leaves the table out of the ascent."""
    lr: PositiveFloat | None = None
    rho: NonNegativeFloat | None = None
    xi: NonNegativeFloat | None = None
    norm: Literal["row", "table"] | None = None
    frequency: Literal["cumulative", "batch", "dataset"] | None = None
    weight_decay: NonNegativeFloat | None = None
    l2: NonNegativeFloat | None = None


class TableOptimizerSettings(Settings):
    name: TableOptimizerName = "rowwise_adagrad"
    engine: Literal["rows", "fbgemm"] = "rows"
    lr: PositiveFloat = 2e-2
    """1e-3 if not said where adam, nadam or radam steps the rows."""
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled, as AdamW's: every row loses lr times this in every step, absent rows too (when they come back)."""
    l2: NonNegativeFloat = 0.0
    """Coupled, on the rows a batch touches only: their gradient gets l2 times the row. Not a whole-table penalty."""
    base: Literal["adam", "nadam", "radam", "rowwise_adagrad", "sgd"] = "adam"
    """What steps the rows under helen, sam and asam."""
    rho: NonNegativeFloat = 0.01
    """Radius of the ascent."""
    xi: NonNegativeFloat = 0.5
    """Helen's lower bound of a row's share of the radius; 1 gives every row the whole."""
    norm: Literal["row", "table"] = "row"
    """Whose gradient is brought to length 1."""
    frequency: Literal["cumulative", "batch", "dataset"] = "cumulative"
    """Occurrences so far, of the batch, or in the whole training split."""
    count_missing: bool = True
    """Whether id 0 may be a table's most frequent."""
    eta: PositiveFloat = 0.01
    """ASAM's constant beside |w|."""
    perturb_dense: bool = False
    """Helen: let the dense parameters ascend too, for the price of their gradient; SAM and ASAM always do."""
    ascend_every: PositiveInt = 1
    """Ascend in every so-manieth step; the others are plain."""
    ascend_fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of the batch that the first pass sees: 1 over a whole number."""
    ascend_precision: Literal["fp32", "bf16"] = "fp32"
    """What the first pass multiplies matrices in; bf16 is faster where the processor knows it (AMX, GPUs)."""

    @model_validator(mode="before")
    @classmethod
    def _rate_of_adam(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or "lr" in value:
            return value
        name = value.get("name", "rowwise_adagrad")
        steps_by = value.get("base", "adam") if name in TWO_PASS else name
        return {**value, "lr": 1e-3} if steps_by in ("adam", "nadam", "radam") else value

    @model_validator(mode="after")
    def _says_nothing_that_is_not_heard(self) -> "TableOptimizerSettings":
        if self.engine == "rows" and self.name == "adagrad":
            raise ValueError("engine rows has no adagrad; use rowwise_adagrad, or engine: fbgemm")
        if self.engine == "fbgemm" and self.name in ("nadam", "radam", *TWO_PASS):
            raise ValueError(f"engine fbgemm has no {self.name}; use engine: rows")
        for key in ("weight_decay", "l2"):
            if self.engine == "fbgemm" and getattr(self, key):
                raise ValueError(f"engine fbgemm has no {key}; use engine: rows")
        if abs(1 / self.ascend_fraction - round(1 / self.ascend_fraction)) > 1e-6:
            raise ValueError(
                f"ascend_fraction {self.ascend_fraction} is not 1 over a whole number, such as 0.25"
            )
        return self


class DenseOptimizerSettings(Settings):
    name: DenseOptimizerName = "adam"
    lr: PositiveFloat = 1e-3
    args: Mapping[str, Any] = {}
    """Further keyword arguments of the torch.optim class, such as weight_decay or betas."""
    clip_norm: PositiveFloat | None = None
    """Largest 2-norm of the whole dense gradient."""


class ScheduleSettings(Settings):
    """The factor on every learning rate; steps count from 1."""

    warmup: NonNegativeInt = 0
    """Steps of linear rise from 0."""
    decay: Literal["constant", "linear", "cosine", "exponential"] = "constant"
    floor: float = Field(default=0.0, ge=0, le=1)
    """Factor at the end of training; exponential needs it above 0."""

    @model_validator(mode="after")
    def _exponential_has_a_floor(self) -> "ScheduleSettings":
        if self.decay == "exponential" and self.floor == 0:
            raise ValueError("decay exponential never reaches 0; give a floor above 0, such as 0.01")
        return self


class PlateauSettings(Settings):
    """Lower every learning rate when the validation metric stops improving."""

    metric: Literal["auc", "gauc", "logloss"] = "auc"
    factor: float = Field(default=0.1, gt=0, lt=1)
    patience: NonNegativeInt = 0
    """Evaluations without improvement that are let pass."""
    floor: float = Field(default=1e-4, gt=0, lt=1)
    """Smallest factor."""


class OptimSettings(Settings):
    tables: TableOptimizerSettings = TableOptimizerSettings()
    dense: DenseOptimizerSettings = DenseOptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    plateau: PlateauSettings | None = None


class ShardingSettings(Settings):
    plan: str = "auto"
    """`auto`, or a plan.json to force."""
    constraints: Mapping[str, tuple[ShardingType, ...]] = {}
    """Sharding types allowed per table; a table's constraint holds for its 1-wide twin too."""
    memory_gb: PositiveFloat | None = None
    """Memory of one rank for tables, their optimizer and their buffers, in GiB; no limit if not said."""

    @field_validator("constraints", mode="before")
    @classmethod
    def _lists_of_known_types(cls, value: Any) -> Any:
        """A type alone serves as a list of one."""
        if not isinstance(value, Mapping):
            return value
        return {name: [kinds] if isinstance(kinds, str) else kinds for name, kinds in value.items()}


FORMAT = 1
"""Version of the job file; another is refused by name."""


class Job(Settings):
    """One training job."""

    format: int = FORMAT
    """Version of these keys."""
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    data: DataSettings
    model: ModelSettings
    tables: Mapping[str, TableSettings] = {}
    """What single tables do differently, by name."""
    optim: OptimSettings = OptimSettings()
    sharding: ShardingSettings = ShardingSettings()
    train: TrainSettings = TrainSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    tolerate: TolerateSettings = TolerateSettings()
    metrics: MetricsSettings = MetricsSettings()
    kubernetes: KubernetesSettings = KubernetesSettings()

    @field_validator("format")
    @classmethod
    def _format_is_known(cls, value: int) -> int:
        if value != FORMAT:
            raise ValueError(
                f"job format {value}, this sparta reads {FORMAT}; write the job for this version"
            )
        return value

    @model_validator(mode="after")
    def _says_nothing_that_is_not_heard(self) -> "Job":
        self.kubernetes.grace(self.checkpoint.grace_seconds)
        every = self.optim.tables
        if every.ascend_fraction * self.data.batch_size < 1:
            raise ValueError(
                f"optim.tables.ascend_fraction {every.ascend_fraction} of data.batch_size {self.data.batch_size} "
                "is less than a sample; give a larger share"
            )
        if self.data.watch and (self.train.epochs > 1 or self.optim.schedule.decay != "constant"):
            raise ValueError(
                "data.watch: nobody knows how many steps there will be; leave train.epochs at 1 and "
                "optim.schedule.decay constant"
            )
        used = {every.name, *(own.optimizer for own in self.tables.values() if own.optimizer)}
        heard = set().union(*(READS.get(name, set()) for name in used))
        for key in ASCENT:
            value = getattr(every, key)
            if key not in heard and value != type(every).model_fields[key].default:
                readers, ours = [name for name, keys in READS.items() if key in keys], sorted(used)
                raise ValueError(
                    f"optim.tables.{key} {value}: read by {', '.join(readers)}, but tables learn by "
                    f"{', '.join(ours)}; drop it"
                )
        for name, own in self.tables.items():
            optimizer = own.optimizer or every.name
            for key in ("rho", "xi", "norm", "frequency"):
                if getattr(own, key) is not None and key not in READS.get(optimizer, set()):
                    raise ValueError(
                        f"tables.{name}.{key} {getattr(own, key)}: its optimizer {optimizer} does not read it; drop it"
                    )
        return self

    def dump(self) -> str:
        """The whole job with every default written out, as YAML."""
        return write_text(self.model_dump(mode="json"))

    def hash(self) -> str:
        """A short hash of all keys, defaults included."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[
            :12
        ]


def load_job(path: Path, overrides: Sequence[str] = ()) -> Job:
    """Read a job file, or that of `env:NAME`, edit it with `key=value` overrides, check it.

    Raises:
        ConfigError: unreadable file, bad YAML, bad override, unknown key or bad value; one line each.
    """
    return parse_job(read_text(path, overrides), str(path))


def check_job(raw: Mapping[str, Any], source: str) -> Job:
    """Check a job given as a mapping; its paths are those of another machine and stay as they are."""
    try:
        return Job.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{source}: {explain(error, Job)}") from error


def parse_job(raw: Mapping[str, Any], source: str) -> Job:
    """Check a job given as a mapping, and resolve its paths here; `source` names it in errors."""
    job = check_job(raw, source)
    data = job.data.model_copy(update={"path": _expanded(job.data.path, f"{source}: data.path")})
    if data.watch:
        watch = data.watch.model_copy(update={"folder": _absolute(data.watch.folder)})
        data = data.model_copy(update={"watch": watch})
    sharding, checkpoint = job.sharding, job.checkpoint
    if sharding.plan != "auto":
        sharding = sharding.model_copy(update={"plan": _absolute(sharding.plan)})
    if checkpoint.path:
        path = _expanded(checkpoint.path, f"{source}: checkpoint.path")
        checkpoint = checkpoint.model_copy(update={"path": path})
    return job.model_copy(update={"data": data, "sharding": sharding, "checkpoint": checkpoint})


def _expanded(path: str, place: str) -> str:
    expanded = os.path.expandvars(path)
    if "$" in expanded:
        raise ConfigError(f"{place}: {expanded} names a variable that is not set; export it")
    return _absolute(expanded)


def _absolute(path: str) -> str:
    return path if is_url(path) else os.path.abspath(os.path.expanduser(path))
