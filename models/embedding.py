"""The tables of a model: one TorchRec EmbeddingBagCollection, and its output in the schema's order.

A feature's table has the feature's name; its 1-wide twin, the first-order ("wide") weights, is
`<name>.wide`. FBGEMM wants widths divisible by 4, so tables are padded: the padding columns are 0,
are cut off here, hence get a zero gradient and stay 0 forever.

Reading the output by split and concatenation is deliberate: KeyedTensor.regroup takes twice the time on a CPU.
"""

# B = slots, F = fields (categorical features), E = embedding dim

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedTensor
from torchrec.modules.embedding_configs import PoolingType

from sparta.models.batch import Batch
from sparta.models.errors import ConfigError
from sparta.models.schema import Schema

WIDE = ".wide"
_PREFIX = "T:"


def torchrec_name(table: str) -> str:
    """Our table name as an nn.ModuleDict accepts it: no dot, no clash with a method (`type`, `items`)."""
    return _PREFIX + table.replace(".", ":")


def table_name(torchrec: str) -> str:
    """The inverse of `torchrec_name`; feature names hold neither dots nor colons."""
    return torchrec.removeprefix(_PREFIX).replace(":", ".")


def padded(dim: int) -> int:
    """Columns that FBGEMM stores for a logical width: the next multiple of 4."""
    return -(-dim // 4) * 4


@dataclass(frozen=True)
class Table:
    """One logical table: what the user declared, without padding."""

    name: str
    feature: str
    rows: int
    dim: int


@dataclass(frozen=True)
class Inputs:
    """What a model is built for; the first argument of every model's constructor."""

    schema: Schema
    embedding_dim: int = 16
    dims: Mapping[str, int] = field(default_factory=dict)
    """Width of single tables, by table name, where it is not embedding_dim."""
    pooling: Mapping[str, str] = field(default_factory=dict)
    """`sum` or `mean` of single multi-valued features; the rest are averaged."""

    def dim(self, feature: str) -> int:
        return self.dims.get(feature, self.embedding_dim)


class _SideBySide(torch.autograd.Function):
    """The deep and the wide columns of pooled rows, as views, with one gradient for both.

    By hand, because autograd would fill a whole gradient with zeros for each of them, and add the two: a tenth
    of a step on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, whole_BC: Tensor, deep: int) -> tuple[Tensor, Tensor]:
        ctx.deep, ctx.shape = deep, whole_BC.shape
        return whole_BC[:, :deep], whole_BC[:, deep :: padded(1)]

    @staticmethod
    def backward(ctx: Any, deep_BN: Tensor, wide_BF: Tensor) -> tuple[Tensor, None]:
        whole_BC = deep_BN.new_empty(ctx.shape)
        whole_BC[:, : ctx.deep] = deep_BN
        whole_BC[:, ctx.deep :] = 0
        whole_BC[:, ctx.deep :: padded(1)] = wide_BF
        return whole_BC, None


class Embedded:
    """Pooled rows of one batch, read by field; the columns behind it are shared, not copied.

    Args:
        columns: by table name, each (B, padded width).
        side_by_side: what `deep` and `wide` give, if pooled rows lie so that nothing need be copied.
    """

    def __init__(
        self,
        columns: Mapping[str, Tensor],
        dims: Mapping[str, int],
        features: Sequence[str],
        side_by_side: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self._columns = columns
        self._dims = dims
        self._features = features
        self._side_by_side = side_by_side

    def fields(self) -> list[Tensor]:
        """F tensors (B, E_f), one a categorical feature in the schema's order."""
        return [self._unpadded(name) for name in self._features]

    def deep(self) -> Tensor:
        """(B, sum of E_f): all fields side by side."""
        if self._side_by_side is not None:
            return self._side_by_side[0]
        return torch.cat(self.fields(), dim=1)

    def wide(self) -> Tensor:
        """(B, F) first-order weights."""
        if self._side_by_side is not None:
            return self._side_by_side[1]
        # One strided slice instead of F: each would cost a buffer of zeros in the backward pass.
        return torch.cat([self._columns[name + WIDE] for name in self._features], dim=1)[:, :: padded(1)]

    def _unpadded(self, table: str) -> Tensor:
        column, dim = self._columns[table], self._dims[table]
        return column if column.shape[1] == dim else column[:, :dim]


class Embeddings(nn.Module):
    """All tables of a model in one EmbeddingBagCollection, so that TorchRec shards them together.

    Args:
        inputs: schema and widths.
        deep: have a table of `embedding_dim` per feature.
        wide: have a 1-wide table per feature.
        equal_dims: the model stacks fields, so all deep tables must have one width.

    Raises:
        ConfigError: no categorical feature, `equal_dims` and a table of another width, an unknown table or feature in
            `dims` or `pooling`, or a pooling other than sum and mean.
    """

    def __init__(
        self, inputs: Inputs, *, deep: bool = True, wide: bool = False, equal_dims: bool = False
    ) -> None:
        super().__init__()
        schema = inputs.schema
        if not schema.sparse:
            raise ConfigError(
                "the dataset has no categorical feature, so there is no table to train; add one to the spec"
            )
        self.features = tuple(feature.name for feature in schema.sparse)
        self.specs: list[Table] = []
        # The deep tables first: on one rank their pooled rows then lie side by side as models want them.
        if deep:
            self.specs += [Table(f.name, f.name, f.rows, inputs.dim(f.name)) for f in schema.sparse]
        if wide:
            self.specs += [Table(f.name + WIDE, f.name, f.rows, 1) for f in schema.sparse]
        self._check(inputs, equal_dims)
        self._dims = {table.name: table.dim for table in self.specs}
        unpadded = all(table.dim == padded(table.dim) for table in self.specs if table.name in self.features)
        self._joinable = deep and unpadded
        self._mean = tuple(
            name
            for name in self.features
            if schema.feature(name).multi and inputs.pooling.get(name, "mean") == "mean"
        )
        # Every table sums; averages are taken here, because TorchRec's plans divide differently.
        self.tables = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name=torchrec_name(table.name),
                    feature_names=[table.feature],
                    num_embeddings=table.rows,
                    embedding_dim=padded(table.dim),
                    pooling=PoolingType.SUM,
                )
                for table in self.specs
            ],
            device=torch.device("meta"),
        )

    def _check(self, inputs: Inputs, equal_dims: bool) -> None:
        for name in inputs.dims:
            if name not in self.features:
                raise ConfigError(f"tables: {name!r} is no categorical feature of the dataset")
            if equal_dims and inputs.dim(name) != inputs.embedding_dim:
                raise ConfigError(
                    f"tables.{name}: dim {inputs.dim(name)} differs from embedding_dim {inputs.embedding_dim}, "
                    "and this model stacks its fields; use one width or a model that concatenates them"
                )
        for name, how in inputs.pooling.items():
            if name not in self.features or not inputs.schema.feature(name).multi:
                raise ConfigError(f"tables: {name!r} is no multi-valued feature, so it has no pooling")
            if how not in ("sum", "mean"):
                raise ConfigError(f"tables.{name}: pooling {how!r} is neither 'sum' nor 'mean'")

    def forward(self, batch: Batch) -> Embedded:
        """Look up and pool: one column block per table."""
        pooled: KeyedTensor = self.tables(batch.sparse)
        if self._joinable and not self._mean and list(pooled.keys()) == [key for _, key in self._outputs()]:
            whole = pooled.values()
            widths = [padded(table.dim) for table in self.specs]
            columns = dict(zip((table.name for table in self.specs), whole.split(widths, 1), strict=True))
            deep = sum(table.dim for table in self.specs if table.name in self.features)
            halves = _SideBySide.apply(whole, deep)  # type: ignore[no-untyped-call]
            return Embedded(columns, self._dims, self.features, halves)
        by_key = pooled.to_dict()
        columns = {table.name: by_key[output] for table, output in self._outputs()}
        if self._mean:
            lengths_FB = batch.sparse.lengths().view(len(self.features), -1)
            for table in self.specs:
                if table.feature in self._mean:
                    length_B = lengths_FB[self.features.index(table.feature)].clamp(min=1)
                    columns[table.name] = columns[table.name] / length_B[:, None]
        return Embedded(columns, self._dims, self.features)

    def _outputs(self) -> Iterator[tuple[Table, str]]:
        """Each table with the key TorchRec gives its output: features of two tables get an @."""
        shared = len(self.specs) > len(self.features)
        for table in self.specs:
            yield table, f"{table.feature}@{torchrec_name(table.name)}" if shared else table.feature
