"""Table optimizers, and the engines that run them in place of autograd's dense updates.

An engine is one object that says which optimizers it has, what state they keep, which TorchRec compute
kernels run it, and how a table is handed to it. `fbgemm` is FBGEMM's own fused optimizers, applied inside
backward; `rows` is ours (rows/), applied when all gradients are there.

Row-wise Adagrad on a padded table: FBGEMM averages g^2 over the padded width P, we mean the logical
width D. The accumulator is then D/P of ours, so lr * sqrt(D/P) and eps * sqrt(D/P) give exactly our step.
A table split by columns keeps one accumulator per row AND shard in FBGEMM, so row-wise Adagrad of such a
table differs from the unsharded one; the planner never splits it unless a constraint asks for that.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode
from torch import nn

from sparta.models.embedding import Table, padded
from sparta.models.errors import ConfigError
from sparta.optim.bases import is_number
from sparta.optim.rows.group import BASES, MOMENTS

FLOAT_BYTES = 4
COUNT_BYTES = 8
STAMP_BYTES = 4
SLOT_BYTES = 4
LOG_BYTES = 8

TWO_PASS = ("helen", "sam", "asam")
SHARDING_TYPES = ("table_wise", "row_wise", "column_wise", "table_row_wise", "data_parallel")


@dataclass(frozen=True)
class TableOptimizer:
    """How the rows of one table learn."""

    name: str
    """sgd, adagrad, rowwise_adagrad, adam, nadam, radam, or an ascend rule: helen, sam, asam."""
    lr: float
    eps: float = 1e-8
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the two moments of adam, nadam, radam."""
    engine: str = "rows"
    base: str = "adam"
    """What steps the rows when `name` is an ascend rule: adam, nadam, radam, rowwise_adagrad or sgd."""
    rho: float = 0.01
    """Radius of the ascent."""
    xi: float = 0.5
    """Helen's lower bound of a row's share of the radius."""
    norm: Literal["row", "table"] = "row"
    frequency: Literal["cumulative", "batch", "dataset"] = "cumulative"
    count_missing: bool = True
    """Whether id 0 (missing or unseen) may be the table's most frequent."""
    eta: float = 0.01
    """ASAM's constant beside |w|."""
    weight_decay: float = 0.0
    """Decoupled, as AdamW's: every row of the table loses this share of lr in every step, absent rows too; part of
    the base's step from the restored weight, so no ascent sees it."""
    l2: float = 0.0
    """Coupled: `l2 w` is added to the gradient of the rows a batch touches, in each pass at the w of that pass, so
    norms and radii see it. Absent rows pay nothing: it is not the penalty on the whole table."""

    @property
    def rule(self) -> str | None:
        """The ascend rule, if any."""
        return self.name if self.name in TWO_PASS else None

    @property
    def steps_by(self) -> str:
        """The base optimizer."""
        return self.base if self.rule else self.name


class Engine(Protocol):
    """What planner and sharder ask of an engine."""

    @property
    def kernels(self) -> tuple[str, ...]:
        """TorchRec compute kernels that run it; the planner is limited to them."""

    @property
    def fused_params(self) -> Mapping[str, Any]:
        """What every table's kernel is built with."""

    @property
    def sharding_types(self) -> tuple[str, ...]:
        """Kinds of sharding it can run."""

    @property
    def empty_shards(self) -> bool:
        """Whether a rank may hold no row of a row-wise table."""

    @property
    def splits_rowwise_state(self) -> bool:
        """Whether row-wise Adagrad of a table that is split by columns equals the unsplit one's."""

    def check(self, table: str, optimizer: TableOptimizer, device: str) -> None:
        """Refuse an optimizer this engine does not have on this kind of device."""

    def state_bytes(self, optimizer: TableOptimizer, rows: int, columns: int, device: str) -> int:
        """Bytes that stay with a shard beside its weights, columns with padding."""

    def buffer_bytes(self, optimizer: TableOptimizer, ids: int, columns: int, device: str) -> int:
        """Bytes of one step's buffers of its own, for so many ids that reach a shard of so many columns."""

    def equip(
        self, parameter: nn.Parameter, table: Table, optimizer: TableOptimizer, *, whole_rows: bool
    ) -> None:
        """Tell TorchRec how this table learns; `whole_rows` says that no shard splits its columns."""


class Fbgemm:
    """FBGEMM's fused optimizers, applied inside backward."""

    kernels = ("fused",)
    # FATAL: the default rewrites a bad id to 0 and trains on.
    fused_params: Mapping[str, Any] = {"bounds_check_mode": BoundsCheckMode.FATAL}
    sharding_types = SHARDING_TYPES[:4]
    empty_shards = False
    splits_rowwise_state = False

    _TYPES = {
        "sgd": EmbOptimType.EXACT_SGD,
        "adagrad": EmbOptimType.EXACT_ADAGRAD,
        "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        "adam": EmbOptimType.ADAM,
    }

    def check(self, table: str, optimizer: TableOptimizer, device: str) -> None:
        for key in ("weight_decay", "l2"):
            if getattr(optimizer, key):
                raise ConfigError(f"table {table}: engine fbgemm has no {key}; use engine rows or drop it")
        if optimizer.name not in self._TYPES:
            raise ConfigError(
                f"table {table}: engine fbgemm has no optimizer {optimizer.name!r}; "
                f"it has {', '.join(self._TYPES)}; engine rows has the others"
            )
        if optimizer.name == "adam" and device == "cpu":
            raise ConfigError(
                f"table {table}: engine fbgemm runs adam on GPUs only; "
                "use engine rows, or adagrad, rowwise_adagrad or sgd"
            )

    def state_bytes(self, optimizer: TableOptimizer, rows: int, columns: int, device: str) -> int:
        entries = {"sgd": 0, "adagrad": columns, "rowwise_adagrad": 1, "adam": 2 * columns}
        return rows * entries[optimizer.name] * FLOAT_BYTES

    def buffer_bytes(self, optimizer: TableOptimizer, ids: int, columns: int, device: str) -> int:
        return 0

    def equip(
        self, parameter: nn.Parameter, table: Table, optimizer: TableOptimizer, *, whole_rows: bool
    ) -> None:
        scale = 1.0
        if optimizer.name == "rowwise_adagrad" and whole_rows:
            scale = math.sqrt(table.dim / padded(table.dim))
        settings: dict[str, Any] = {
            "optimizer": self._TYPES[optimizer.name],
            "learning_rate": optimizer.lr * scale,
        }
        if optimizer.name != "sgd":
            settings["eps"] = optimizer.eps * scale
        if optimizer.name == "adam":
            settings["beta1"], settings["beta2"] = optimizer.betas
        hand_over(parameter, settings)


class Rows:
    """Our row kernels, applied when every rank has every gradient."""

    kernels = ("fused",)
    # FBGEMM only looks rows up here. Ids are checked once a step (rows/bags.py), not in each of its passes.
    fused_params: Mapping[str, Any] = {"bounds_check_mode": BoundsCheckMode.NONE}
    sharding_types = SHARDING_TYPES
    empty_shards = True
    splits_rowwise_state = True

    def check(self, table: str, optimizer: TableOptimizer, device: str) -> None:
        for key, known in (("norm", ("row", "table")), ("frequency", ("cumulative", "batch", "dataset"))):
            if getattr(optimizer, key) not in known:
                raise ConfigError(f"table {table}: {key} {getattr(optimizer, key)!r}; use {', '.join(known)}")
        for key in ("lr", "eps", "rho", "xi", "eta", "weight_decay", "l2"):
            if not is_number(getattr(optimizer, key)):
                raise ConfigError(
                    f"table {table}: {key} {getattr(optimizer, key)!r} is not a number from 0 up"
                )
        if optimizer.lr * optimizer.weight_decay >= 1:
            raise ConfigError(
                f"table {table}: lr {optimizer.lr} times weight_decay {optimizer.weight_decay} is not below 1, so a "
                "step would leave nothing of a row; lower one of them"
            )
        if not all(0 <= beta < 1 for beta in optimizer.betas):
            raise ConfigError(f"table {table}: betas {optimizer.betas}; each is from 0 up and below 1")
        if optimizer.eps == 0 and optimizer.steps_by != "sgd":
            raise ConfigError(f"table {table}: eps 0; a row whose gradient is 0 would be divided by it")
        if optimizer.steps_by not in BASES:
            raise ConfigError(
                f"table {table}: engine rows has no optimizer {optimizer.steps_by!r}; "
                f"it has {', '.join((*BASES, *TWO_PASS))}"
            )

    def state_bytes(self, optimizer: TableOptimizer, rows: int, columns: int, device: str) -> int:
        moments = 2 * columns if optimizer.steps_by in MOMENTS else 0
        entries = 1 if optimizer.steps_by == "rowwise_adagrad" else moments
        counts = COUNT_BYTES if optimizer.name == "helen" else 0
        stamp = STAMP_BYTES if device == "cpu" else 0
        decay = LOG_BYTES if optimizer.weight_decay else 0
        return rows * (entries * FLOAT_BYTES + stamp + counts + decay)

    def buffer_bytes(self, optimizer: TableOptimizer, ids: int, columns: int, device: str) -> int:
        # At worst every id is another row. Of each: number, table, occurrences and squared norm; its gradient;
        # under a rule also the factor, the row before the ascent and the gradient of the second pass.
        per_id = 4 * COUNT_BYTES + columns * FLOAT_BYTES
        if optimizer.rule:
            per_id += COUNT_BYTES + 2 * columns * FLOAT_BYTES
        # Where its occurrences are: on a CPU the slot, on a GPU the sorted ids and sums of their pieces.
        per_id += SLOT_BYTES if device == "cpu" else 6 * COUNT_BYTES + columns * FLOAT_BYTES
        return ids * per_id

    def equip(
        self, parameter: nn.Parameter, table: Table, optimizer: TableOptimizer, *, whole_rows: bool
    ) -> None:
        """Nothing: the sharder of rows/ binds every table to its learner."""


def hand_over(parameter: nn.Parameter, settings: Mapping[str, Any]) -> None:
    """Give a table settings of its own.

    TorchRec reads them here and nowhere else. Its public setter also builds an optimizer with state of the
    table's size, which nobody would use.
    """
    parameter._optimizer_classes = [None]  # type: ignore[attr-defined]
    parameter._optimizer_kwargs = [dict(settings)]  # type: ignore[attr-defined]


ENGINES: dict[str, Engine] = {"rows": Rows(), "fbgemm": Fbgemm()}


def engine_for(tables: Sequence[Table], optimizers: Mapping[str, TableOptimizer], device: str) -> Engine:
    """The engine of these tables, once every table's optimizer has been checked against it.

    Raises:
        ConfigError: a table without optimizer, an unknown engine, two engines, or an optimizer the engine
            does not have on this device.
    """
    names = set()
    for table in tables:
        if table.name not in optimizers:
            raise ConfigError(f"table {table.name} has no optimizer; every table needs one")
        names.add(optimizers[table.name].engine)
    for name in sorted(names - set(ENGINES)):
        raise ConfigError(f"optim.tables.engine: no engine {name!r}; use {', '.join(ENGINES)}")
    if len(names) > 1:
        raise ConfigError(f"optim.tables.engine: {', '.join(sorted(names))} in one model; use one engine")
    engine = ENGINES[names.pop()]
    for table in tables:
        engine.check(table.name, optimizers[table.name], device)
    return engine
