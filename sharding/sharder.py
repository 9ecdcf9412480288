"""Table optimizers, the engines that run them inside TorchRec's backward, and the sharder that places them.

An engine is one object that says which optimizers it has, what state they keep, which TorchRec compute
kernels run it, and how a table is handed to it. `fbgemm` is FBGEMM's own fused optimizers.

Row-wise Adagrad on a padded table: FBGEMM averages g^2 over the padded width P, we mean the logical
width D. The accumulator is then D/P of ours, so lr * sqrt(D/P) and eps * sqrt(D/P) give exactly our step.
A table split by columns keeps one accumulator per row AND shard in FBGEMM, so row-wise Adagrad of such a
table differs from the unsharded one; the planner never splits it unless a constraint asks for that.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode
from torch import nn
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder

from sparta.models.embedding import Table, padded
from sparta.models.errors import ConfigError

FLOAT_BYTES = 4
SHARDING_TYPES = ("table_wise", "row_wise", "column_wise", "table_row_wise")


@dataclass(frozen=True)
class TableOptimizer:
    """How the rows of one table learn."""

    name: str
    lr: float
    eps: float = 1e-8
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates of its two moments."""
    engine: str = "fbgemm"


class Engine(Protocol):
    """What planner and sharder ask of an engine."""

    @property
    def kernels(self) -> tuple[str, ...]:
        """TorchRec compute kernels that run it; the planner is limited to them."""

    @property
    def fused_params(self) -> Mapping[str, Any]:
        """What every table's kernel is built with."""

    def check(self, table: str, optimizer: TableOptimizer, device: str) -> None:
        """Refuse an optimizer this engine does not have on this kind of device."""

    def state_bytes(self, optimizer: TableOptimizer, rows: int, columns: int) -> int:
        """Bytes of optimizer state of a shard, columns with padding."""

    def equip(
        self, parameter: nn.Parameter, table: Table, optimizer: TableOptimizer, *, whole_rows: bool
    ) -> None:
        """Tell TorchRec how this table learns; `whole_rows` says that no shard splits its columns."""


class Fbgemm:
    """FBGEMM's fused optimizers, applied inside backward."""

    kernels = ("fused",)
    # FATAL: the default rewrites a bad id to 0 and trains on.
    fused_params: Mapping[str, Any] = {"bounds_check_mode": BoundsCheckMode.FATAL}

    _TYPES = {
        "sgd": EmbOptimType.EXACT_SGD,
        "adagrad": EmbOptimType.EXACT_ADAGRAD,
        "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        "adam": EmbOptimType.ADAM,
    }

    def check(self, table: str, optimizer: TableOptimizer, device: str) -> None:
        if optimizer.name not in self._TYPES:
            raise ConfigError(
                f"table {table}: engine fbgemm has no optimizer {optimizer.name!r}; "
                f"it has {', '.join(self._TYPES)}"
            )
        if optimizer.name == "adam" and device == "cpu":
            raise ConfigError(
                f"table {table}: engine fbgemm runs adam on GPUs only; "
                "on CPU use adagrad, rowwise_adagrad or sgd"
            )

    def state_bytes(self, optimizer: TableOptimizer, rows: int, columns: int) -> int:
        entries = {"sgd": 0, "adagrad": columns, "rowwise_adagrad": 1, "adam": 2 * columns}
        return rows * entries[optimizer.name] * FLOAT_BYTES

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
        # TorchRec reads a table's own settings here and nowhere else. Its public setter also builds an
        # optimizer with state of the table's size, which nobody would use.
        parameter._optimizer_classes = [None]  # type: ignore[attr-defined]
        parameter._optimizer_kwargs = [settings]  # type: ignore[attr-defined]


ENGINES: dict[str, Engine] = {"fbgemm": Fbgemm()}


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


class Sharder(EmbeddingBagCollectionSharder):  # type: ignore[misc]
    """TorchRec's own refuses row_wise and table_row_wise on CPU, though they work there."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(fused_params=dict(engine.fused_params))
        self._engine = engine

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return list(SHARDING_TYPES)

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        return list(self._engine.kernels)
