"""The sharder of the rows engine."""

from collections.abc import Callable, Mapping

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.distributed.types import ParameterSharding, ShardingEnv
from torchrec.modules.embedding_configs import DataType, PoolingType

from sparta.models.errors import ConfigError
from sparta.optim.rows.group import BASES
from sparta.sharding.engines import ENGINES, hand_over
from sparta.sharding.rows.bags import RowsCollection
from sparta.sharding.rows.learner import Learning
from sparta.sharding.sharder import Sharder


class RowsSharder(Sharder):
    """Shards EmbeddingBagCollections so that our kernels step their rows.

    Args:
        learning: how a table learns.
        named: tables that were given settings of their own; a model without one of them is refused.
    """

    def __init__(
        self, learning: Callable[[EmbeddingBagConfig], Learning], *, named: frozenset[str] = frozenset()
    ) -> None:
        super().__init__(ENGINES["rows"])
        self._learning = learning
        self._named = named

    def shard(
        self,
        module: EmbeddingBagCollection,
        params: Mapping[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> RowsCollection:
        learning = {}
        for config in module.embedding_bag_configs():
            parameter = module.embedding_bags[config.name].weight
            kind = params[config.name].sharding_type
            if kind not in self._engine.sharding_types:
                raise ConfigError(
                    f"table {config.name}: engine rows does not know sharding {kind}; "
                    f"use {', '.join(self._engine.sharding_types)}"
                )
            way = learning[config.name] = self._learning(config)
            if module.is_weighted() and config.pooling == PoolingType.MEAN:
                raise ConfigError(
                    f"table {config.name}: a mean of weighted rows is another on every plan; pool by sum and divide "
                    "in the model"
                )
            if not parameter.requires_grad:
                raise ConfigError(
                    f"table {config.name} is frozen, and the rows engine steps all its tables; "
                    'give it {"name": "sgd", "lr": 0.0}'
                )
            if way.optimizer.weight_decay and config.data_type != DataType.FP32:
                raise ConfigError(
                    f"table {config.name}: weight_decay in {config.data_type.value} would be rounded away; keep the "
                    "table in fp32"
                )
            _check_counts(config, way)
            # FBGEMM only looks rows up: of its optimizers SGD keeps no state. TorchRec puts tables of one
            # learning rate, which nobody reads, into one group, and a group's tables share our state.
            counts, decays = way.optimizer.rule == "helen", way.optimizer.weight_decay > 0
            group = BASES.index(way.optimizer.steps_by) * 4 + counts * 2 + decays
            if device is not None and device.type == "cuda":
                # There all rows of a group take tiles and buffers as wide as its widest.
                group += 4 * len(BASES) * config.embedding_dim
            hand_over(parameter, {"optimizer": EmbOptimType.EXACT_SGD, "learning_rate": float(group)})
        return RowsCollection(
            module,
            params,
            learning=learning,
            named=self._named,
            env=env,
            fused_params=self.fused_params,
            device=device,
            qcomm_codecs_registry=self.qcomm_codecs_registry,
            module_fqn=module_fqn,
        )


def _check_counts(config: EmbeddingBagConfig, way: Learning) -> None:
    if way.optimizer.rule != "helen" or way.optimizer.frequency != "dataset":
        return
    counts, rows = way.counts, config.num_embeddings
    if counts is None or counts.shape != (rows,) or counts.is_floating_point():
        found = "none" if counts is None else f"{counts.dtype} of shape {tuple(counts.shape)}"
        raise ConfigError(
            f"table {config.name}: frequency dataset needs the training set's {rows} counts, one whole number a row, "
            f"not {found}"
        )
