"""Four small subclasses that put our row kernels into TorchRec: bag <- lookup <- collection <- sharder.

TorchRec places the tables and moves ids and pooled rows; FBGEMM looks the rows up, outside autograd. The
backward pass of a bag only notes the gradient of its pooled output (`Call.pooled`): nothing is applied inside
backward, because norms, frequencies and the agreement that all is finite need every gradient first.

The ids of a batch travel once: a collection keeps what arrived and takes it again when its forward is called
with the same KeyedJaggedTensor, as the second pass of a step does. A model that makes its KeyedJaggedTensor
itself makes another in the second pass, and the ids travel again. One rank alone takes a short way (alone.py).
"""

# F = features of a bag, B = samples, C = pooled columns

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, KeyedJaggedTensor, KeyedTensor
from torchrec.distributed.batched_embedding_kernel import BatchedDenseEmbeddingBag, BatchedFusedEmbeddingBag
from torchrec.distributed.embedding_lookup import GroupedPooledEmbeddingsLookup
from torchrec.distributed.embedding_types import GroupedEmbeddingConfig, KJTList
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.types import ParameterSharding, ShardingEnv, ShardingType

from sparta.optim.rows.group import Bags
from sparta.sharding.rows.alone import at_home, is_alone
from sparta.sharding.rows.call import Call
from sparta.sharding.rows.check import Bounds
from sparta.sharding.rows.learner import Learner, Learning
from sparta.sharding.rows.replicas import ReplicaCall


class _Noted(torch.autograd.Function):
    """The pooled rows of a call; backward notes their gradient there."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, weights: Tensor | None, pooled: Tensor, call: Call) -> Tensor:
        ctx.call = call
        return pooled.view_as(pooled)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor | None, None, None]:
        call: Call = ctx.call
        if call.pooled is not None:
            raise RuntimeError(
                "two backward passes without a step between them; the rows engine keeps one gradient"
            )
        call.pooled = gradient.contiguous()
        of_weights = None
        if ctx.needs_input_grad[1]:
            of_weights = call.learner.kernels.weight_gradient(call.learner.group, call.bags, call.pooled)
        return None, of_weights, None, None


class _Bag:
    """What the two kinds of bag share; `emb_module` and `config` are TorchRec's."""

    learner: Learner
    anchor: Tensor
    """A leaf that needs a gradient, so that autograd comes by; it never gets one."""
    emb_module: nn.Module
    config: GroupedEmbeddingConfig

    def bind(self, learning: Mapping[str, Learning], replicated: bool) -> None:
        """Give every table its way of learning, by TorchRec's table name."""
        self.learner = Learner.of(self.config, self.emb_module, learning, replicated=replicated)
        device = self.learner.group.weights.device
        self.anchor = torch.zeros((), device=device, requires_grad=True)
        rows = [shape.rows for shape in self.learner.group.shapes for _ in range(shape.features)]
        self._bounds = Bounds(rows, device)

    def call(self, features: KeyedJaggedTensor) -> Call:
        """The ids that arrived, every one within its table.

        Raises:
            RuntimeError: an id is not (on a GPU, the device's assertion fails).
        """
        weights = features.weights_or_none() if self.config.is_weighted else None
        ids, offsets = features.values().long(), features.offsets().long()
        bags = Bags(ids, offsets, None if weights is None else weights.detach())
        self._bounds.check(bags)
        return ReplicaCall(self.learner, bags) if self.learner.replicated else Call(self.learner, bags)

    def look_up(self, call: Call, weights: Tensor | None) -> Tensor:
        """(B, C) pooled rows."""
        bags = call.bags
        with torch.no_grad():
            pooled: Tensor = (
                self.emb_module(indices=bags.ids, offsets=bags.offsets, per_sample_weights=bags.weights)
                if self.learner.group.elements
                else call.nothing()  # FBGEMM takes a bag without any row for one on a GPU
            )
        if not torch.is_grad_enabled():
            return pooled
        return _Noted.apply(self.anchor, weights, pooled, call)  # type: ignore[no-any-return, no-untyped-call]


class FusedBag(_Bag, BatchedFusedEmbeddingBag):  # type: ignore[misc]
    """Tables, or shards of them, that live on this rank."""


class ReplicaBag(_Bag, BatchedDenseEmbeddingBag):  # type: ignore[misc]
    """data_parallel tables: whole on every rank."""


class Lookup(GroupedPooledEmbeddingsLookup):  # type: ignore[misc]
    """The bags of one kind of sharding."""

    def _create_embedding_kernel(
        self,
        config: GroupedEmbeddingConfig,
        device: torch.device | None,
        pg: dist.ProcessGroup | None,
        sharding_type: ShardingType | None,
        env: ShardingEnv | None,
    ) -> nn.Module:
        if sharding_type == ShardingType.DATA_PARALLEL:
            return ReplicaBag(config=config, pg=pg, device=device, sharding_type=sharding_type)
        return FusedBag(config=config, pg=pg, device=device, sharding_type=sharding_type, env=env)

    @property
    def module(self) -> "Lookup":
        """TorchRec takes data_parallel lookups out of a DistributedDataParallel, which ours need not."""
        return self

    @property
    def leaves(self) -> list[Tensor]:
        """What a backward pass that only wants the tables' gradients goes to."""
        return [bag.anchor for bag in self._emb_modules] or [self._dummy_embs_tensor]

    def calls(self, features: KeyedJaggedTensor) -> list[Call]:
        """The ids of each bag."""
        if not self._emb_modules:
            return []
        if features.variable_stride_per_key():
            raise ValueError(
                "the rows engine takes one batch size for all features, this KeyedJaggedTensor has several; "
                "use engine fbgemm"
            )
        parts = features.split(self._feature_splits)
        return [bag.call(part) for bag, part in zip(self._emb_modules, parts, strict=True)]

    def forward(self, features: KeyedJaggedTensor, calls: list[Call] | None = None) -> Tensor:
        calls = self.calls(features) if calls is None else calls
        if not calls:
            nothing: Tensor = self._dummy_embs_tensor.view(features.stride(), 0)
            return nothing
        weights = features.weights_or_none()
        if weights is not None and weights.requires_grad:
            parts = weights.split([len(call.bags.ids) for call in calls])
            # The gradient of ids that travelled is divided by the ranks on its way; that of these is not.
            factor = self._scale_gradient_factor
            weighted: list[Tensor | None] = [_Scaled.apply(part, factor) for part in parts]  # type: ignore[no-untyped-call]
        else:
            weighted = [None] * len(calls)
        pooled = [
            bag.look_up(call, weight)
            for bag, call, weight in zip(self._emb_modules, calls, weighted, strict=True)
        ]
        return pooled[0] if len(pooled) == 1 else torch.cat(pooled, dim=1)


class _Scaled(torch.autograd.Function):
    """The identity, whose gradient is multiplied."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: int) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


@dataclass(eq=False)
class Arrived:
    """A batch that has reached the ranks which hold its rows."""

    sparse: KeyedJaggedTensor
    """As the model was given it; its identity is the key."""
    context: Any
    features: KJTList
    calls: list[list[Call]]
    """By lookup, by bag."""

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep its memory, which another stream has made, until this one is done with it."""
        self.features.record_stream(stream)
        self.context.record_stream(stream)
        for call in self.all_calls():
            for part in (call.bags.ids, call.bags.offsets, call.bags.weights):
                if part is not None:
                    part.record_stream(stream)

    def all_calls(self) -> list[Call]:
        return [call for calls in self.calls for call in calls]


class RowsCollection(ShardedEmbeddingBagCollection):  # type: ignore[misc]
    """A sharded EmbeddingBagCollection whose rows our kernels step."""

    def __init__(
        self,
        module: EmbeddingBagCollection,
        params: Mapping[str, ParameterSharding],
        *,
        learning: Mapping[str, Learning],
        named: frozenset[str] = frozenset(),
        **settings: Any,
    ) -> None:
        super().__init__(module=module, table_name_to_parameter_sharding=dict(params), **settings)
        self.learning = dict(learning)
        self.named = named
        self._arrived: dict[int, Arrived] = {}
        self._alone = is_alone(self)
        # Whoever saves or replaces the weights with torch's own words
        self.register_state_dict_pre_hook(lambda *_: self.settle())
        self.register_load_state_dict_pre_hook(lambda *_: self.settle())
        self.stepping = False
        """Whether a step is under way: batches that are looked up outside of one are nobody's to step."""
        for kind, lookup in zip(self._sharding_types, self._lookups, strict=True):
            for bag in lookup._emb_modules:
                bag.bind(learning, kind == ShardingType.DATA_PARALLEL.value)

    def _create_lookups(self) -> None:
        for kind, sharding in zip(self._sharding_types, self._embedding_shardings, strict=True):
            # Node-wise shardings keep the groups of every rank, the others only ours.
            by_rank = getattr(sharding, "_grouped_embedding_configs_per_rank", None)
            configs = by_rank[self._env.rank] if by_rank is not None else sharding._grouped_embedding_configs
            replicated = kind == ShardingType.DATA_PARALLEL.value
            self._lookups.append(
                Lookup(
                    grouped_configs=configs,
                    pg=self._env.process_group,
                    device=self._device,
                    scale_weight_gradients=not replicated,
                    sharding_type=ShardingType(kind),
                    env=self._env,
                )
            )

    def init_data_parallel(self) -> None:
        """No DistributedDataParallel: replicas share gradients by row (replicas.py). They start equal."""
        for kind, lookup in zip(self._sharding_types, self._lookups, strict=True):
            if kind == ShardingType.DATA_PARALLEL.value and self._env.world_size > 1:
                for bag in lookup._emb_modules:
                    dist.broadcast(bag.emb_module.weights.data, src=0, group=self._env.process_group)

    def send(self, sparse: KeyedJaggedTensor) -> Arrived:
        """Send the ids of a batch to where their rows are; collective."""
        context = self.create_context()
        features = at_home(self, sparse) if self._alone else self.input_dist(context, sparse).wait().wait()
        calls = [lookup.calls(part) for lookup, part in zip(self._lookups, features, strict=True)]
        return Arrived(sparse, context, features, calls)

    def accept(self, arrived: Arrived) -> None:
        """Have a batch ready for the forward that is given it."""
        self._arrived[id(arrived.sparse)] = arrived

    def arrive(self, sparse: KeyedJaggedTensor) -> None:
        """`send` and `accept`, unless this very batch is here already."""
        if id(sparse) not in self._arrived:
            self.accept(self.send(sparse))

    def takes(self, sparse: KeyedJaggedTensor) -> bool:
        """Whether a batch has all features that are looked up here; a model may make others of them."""
        wanted = {name for table in self._embedding_bag_configs for name in table.feature_names}
        return wanted <= set(sparse.keys())

    def first_calls(self) -> list[Call]:
        """The calls of the batch that arrived first in this step; none if none arrived."""
        return next((one.all_calls() for one in self._arrived.values()), [])

    def last_calls(self) -> list[Call]:
        """The calls of the batch that was looked up last; none if none was.

        Raises:
            RuntimeError: another batch has a gradient from the same pass, which would be lost.
        """
        *others, last = [one.all_calls() for one in self._arrived.values()] or [[]]
        if any(call.pooled is not None for calls in others for call in calls):
            raise RuntimeError(
                "an EmbeddingBagCollection was called twice in one forward pass; the rows engine keeps one gradient: "
                "join the features in one KeyedJaggedTensor"
            )
        return last

    def forget(self) -> None:
        """Drop what arrived; a step is over."""
        self._arrived.clear()
        self.stepping = False

    def settle(self) -> None:
        """Leave no weight decay pending; to be called before weights are read, or written, by others than a step."""
        for learner in self.learners():
            if learner.decay:
                learner.decay.settle()

    def learners(self) -> list[Learner]:
        return [bag.learner for lookup in self._lookups for bag in lookup._emb_modules]

    def leaves(self) -> list[Tensor]:
        """See `Lookup.leaves`."""
        return [leaf for lookup in self._lookups for leaf in lookup.leaves]

    def forward(self, sparse: KeyedJaggedTensor) -> Any:
        if not (
            torch.is_grad_enabled() and (self.training or self.stepping)
        ):  # eval mode is no reason not to learn
            self.settle()
            return super().forward(sparse)
        arrived = self._arrived.pop(id(sparse), None) or self.send(sparse)
        if self.stepping:
            self.accept(arrived)  # the last in the dictionary is the last looked up
        for call in arrived.all_calls():
            call.catch_up()
        pooled = [
            lookup(features, calls)
            for lookup, features, calls in zip(self._lookups, arrived.features, arrived.calls, strict=True)
        ]
        if self._alone:
            joined = pooled[0] if len(pooled) == 1 else torch.cat(pooled, dim=1)
            return KeyedTensor(self._embedding_names, self._embedding_dims, joined)
        return self.output_dist(arrived.context, pooled)


def row_collections(module: nn.Module) -> Iterator[RowsCollection]:
    """The collections of a sharded model that our kernels step, in the model's order."""
    for child in module.modules():
        if isinstance(child, RowsCollection):
            yield child
