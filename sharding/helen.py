"""Helen for people who have a TorchRec script: a sharder in place of TorchRec's, and a step in place of theirs.

    sharder = HelenSharder(lr=1e-3, rho=0.01, tables={"country": {"name": "adam"}})
    plan = EmbeddingShardingPlanner(topology=topology).collective_plan(model, [sharder], dist.group.WORLD)
    model = DistributedModelParallel(model, device=device, plan=plan, sharders=[sharder])
    dense = torch.optim.Adam(dict(in_backward_optimizer_filter(model.named_parameters())).values(), lr=1e-3)
    step = RowsStep(model, dense)
    for batch in loader:
        loss = step(lambda: bce(model(batch.sparse, batch.dense), batch.labels))

Nothing of sparta's trainer, job files or data is needed. Where both calls of the loss give the model the same
KeyedJaggedTensor object, its ids travel once. Weights of single ids (`is_weighted`) scale rows and gradients in every
plan; a gradient of their own they get only where ids stay on their rank, as TorchRec sends them outside autograd.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from torch import Tensor
from torchrec import EmbeddingBagConfig

from sparta.models.errors import ConfigError
from sparta.sharding.engines import ENGINES, TableOptimizer
from sparta.sharding.rows.learner import Learning
from sparta.sharding.rows.sharder import RowsSharder

_OF_THE_STEP = {"perturb_dense", "ascend_every", "ascend_precision", "clip_norm"}


class HelenSharder(RowsSharder):
    """Shards EmbeddingBagCollections whose tables learn by Helen (or SAM, ASAM, adam, ...: `name`).

    Args:
        lr: learning rate of the tables.
        name: helen, sam, asam, or a base optimizer alone: adam, nadam, radam,
            rowwise_adagrad, sgd.
        tables: what single tables do differently, by table name: any field of TableOptimizer.
        counts: (rows,) int64 occurrences in the training set, of tables with frequency "dataset".
        seed: of the stochastic rounding of float16 and bfloat16 tables.
        settings: further fields of TableOptimizer, for all tables: base, rho, xi, norm, frequency, eps, betas, ...

    Raises:
        ConfigError: an unknown setting or optimizer; a table that the model does not have (when stepping).
    """

    def __init__(
        self,
        *,
        lr: float,
        name: str = "helen",
        tables: Mapping[str, Mapping[str, Any]] | None = None,
        counts: Mapping[str, Tensor] | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        own = dict(tables or {})
        known = {field.name for field in fields(TableOptimizer)} - {"engine"}
        for where, given in {
            "": settings,
            **{f"table {table}: ": keys for table, keys in own.items()},
        }.items():
            for key in sorted(set(given) & _OF_THE_STEP):
                raise ConfigError(f"{where}{key} is a setting of RowsStep; give it there")
            for key in sorted(set(given) - known):
                raise ConfigError(f"{where}unknown setting {key!r}; known: {', '.join(sorted(known))}")
        default = TableOptimizer(name, lr, **settings)
        occurrences = dict(counts or {})

        def learning(config: EmbeddingBagConfig) -> Learning:
            optimizer = replace(default, **own.get(config.name, {}))
            ENGINES["rows"].check(config.name, optimizer, "")
            return Learning(optimizer, config.embedding_dim, seed, occurrences.get(config.name))

        super().__init__(learning, named=frozenset(own))
