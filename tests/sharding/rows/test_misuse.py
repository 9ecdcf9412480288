"""What happens around steps in people's scripts: errors, other forward passes, tables that cannot be stepped."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, PoolingType
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, table_wise
from torchrec.distributed.types import ShardingPlan

from sparta.models.errors import ConfigError
from sparta.sharding import HelenSharder, RowsStep
from tests.pool import Pool

CPU = torch.device("cpu")


def ids(*values: int, key: str = "f") -> KeyedJaggedTensor:
    """One id a sample."""
    return KeyedJaggedTensor([key], torch.tensor(values), lengths=torch.ones(len(values), dtype=torch.int32))


def collection(name: str = "t", rows: int = 10, **settings: Any) -> EmbeddingBagCollection:
    pooling = settings.pop("pooling", PoolingType.SUM)
    table = EmbeddingBagConfig(
        name=name,
        num_embeddings=rows,
        embedding_dim=4,
        feature_names=["f"],
        pooling=pooling,
        init_fn=nn.init.ones_,
    )
    return EmbeddingBagCollection(tables=[table], device=CPU, **settings)


class Towers(nn.Module):
    def __init__(self, *towers: EmbeddingBagCollection) -> None:
        super().__init__()
        self.towers = nn.ModuleList(towers)
        self.over = nn.Linear(4, 1)
        self.spoil: Callable[[Tensor], Tensor] | None = None
        """What happens to the gradient of the pooled rows."""

    def forward(self, sparse: KeyedJaggedTensor) -> Tensor:
        rows = torch.stack([tower(sparse)["f"] for tower in self.towers]).sum(0)
        if self.spoil is not None and rows.requires_grad:
            rows.register_hook(self.spoil)
        return self.over(rows).tanh()  # type: ignore[no-any-return]


def sharded(*towers: EmbeddingBagCollection, kind: str = "table_wise", **settings: Any) -> nn.Module:
    sharder, model = HelenSharder(**{"lr": 0.05, "rho": 0.1, **settings}), Towers(*towers)
    plan = ShardingPlan(
        {
            f"towers.{number}": construct_module_sharding_plan(
                tower,
                per_param_sharding={
                    config.name: table_wise(rank=0) for config in tower.embedding_bag_configs()
                },
                sharder=sharder,
                local_size=1,
                world_size=1,
                device_type="cpu",
            )
            for number, tower in enumerate(towers)
        }
    )
    for placed in plan.plan.values():
        for parameter in placed.values():  # type: ignore[attr-defined]
            parameter.sharding_type = kind
    return DistributedModelParallel(model, device=CPU, plan=plan, sharders=[sharder])


def table_of(step: RowsStep) -> Tensor:
    return step.tables.learners[0].group.weights.clone()


def counts_of(step: RowsStep) -> list[int]:
    counts = step.tables.learners[0].counts
    assert counts is not None
    return counts.tolist()


def alone(fn: Callable[..., Any], pool: Pool) -> Any:
    return pool.run(1, fn)[0]


def raising(rank: int, ranks: int) -> None:
    model = sharded(collection())
    step = RowsStep(model, None)
    step(lambda: model(ids(1, 2, 2)).sum())
    before, counts, dense = (
        table_of(step),
        counts_of(step),
        [p.clone() for p in model.module.over.parameters()],
    )
    for fails_in in (1, 2):
        passes = 0

        def loss() -> Tensor:
            nonlocal passes
            passes += 1
            value = model(ids(3, 2)).sum()
            if passes == fails_in:  # noqa: B023
                raise RuntimeError("out of memory, say")
            return value  # type: ignore[no-any-return]

        with pytest.raises(RuntimeError, match="out of memory"):
            step(loss)
        assert torch.equal(table_of(step), before)
        assert counts_of(step) == counts
    assert all(torch.equal(a, b) for a, b in zip(dense, model.module.over.parameters(), strict=True))
    step(lambda: model(ids(5)).sum())
    assert counts_of(step) == [0, 1, 2, 0, 0, 1, 0, 0, 0, 0]
    assert step.tables.most_frequent() == {"t": (2, 2)}


def test_an_error_in_a_pass_leaves_everything_as_it_was(pool: Pool) -> None:
    alone(raising, pool)


def looking(rank: int, ranks: int) -> list[int]:
    model = sharded(collection())
    step = RowsStep(model, None)
    for number in range(3):
        model(ids(7, 7, 7))  # in training mode: a metric, a warm-up
        step(lambda: model(ids(number, number)).sum())  # noqa: B023
        model(ids(8)).sum().backward()
    return counts_of(step)


def test_forward_passes_outside_a_step_are_nobodys(pool: Pool) -> None:
    assert alone(looking, pool) == [2, 2, 2, 0, 0, 0, 0, 0, 0, 0]


def arriving(rank: int, ranks: int) -> list[int]:
    model = sharded(collection())
    step = RowsStep(model, None)
    for early in (ids(9, 9), ids(3, key="another")):  # a model may look up features of its own making
        step.tables.arrive(early)
        step(lambda: model(ids(1, 2)).sum())
    return counts_of(step)


def test_what_was_looked_up_counts_and_not_what_arrived(pool: Pool) -> None:
    assert alone(arriving, pool) == [0, 2, 2, 0, 0, 0, 0, 0, 0, 0]


def beside(rank: int, ranks: int) -> list[float]:
    model, head = sharded(collection()), nn.Linear(1, 1)
    dense = torch.optim.SGD([*model.module.over.parameters(), *head.parameters()], lr=0.0)
    step = RowsStep(model, dense)
    found = []
    for _ in range(3):
        step(lambda: head(model(ids(1, 2))).sum())
        assert head.bias.grad is not None
        found.append(float(head.bias.grad))
    return found


def test_gradients_of_parameters_beside_the_model_do_not_pile_up(pool: Pool) -> None:
    assert alone(beside, pool) == [2.0, 2.0, 2.0]


def following(rank: int, ranks: int) -> list[tuple[str | None, float]]:
    found = []
    for settings in ({"name": "sam", "rho": 0.2}, {"name": "helen"}, {"name": "adam"}):
        step = RowsStep(sharded(collection(), **settings), None)
        found.append((step._dense.rule, step._dense._rho))
    step = RowsStep(sharded(collection(), rho=0.3), None, perturb_dense=True)
    found.append((step._dense.rule, step._dense._rho))
    mixed = sharded(collection("a"), collection("b"), name="sam", tables={"a": {"rho": 0.7}})
    with pytest.raises(ConfigError, match=r"tables have rho 0.1, 0.7: say with rho"):
        RowsStep(mixed, None)
    both = sharded(collection("a"), collection("b"), name="sam", tables={"a": {"name": "asam"}})
    with pytest.raises(ConfigError, match="by sam and by asam, and the dense parameters can follow one"):
        RowsStep(both, None)
    return found


def test_dense_parameters_do_as_the_tables_do(pool: Pool) -> None:
    assert alone(following, pool) == [("sam", 0.2), (None, 0.0), (None, 0.0), ("helen", 0.3)]


def precisions(rank: int, ranks: int) -> list[torch.dtype]:
    model = sharded(collection())
    seen = []

    def loss() -> Tensor:
        out = model(ids(1, 2))
        seen.append(out.dtype)
        return out.float().sum()  # type: ignore[no-any-return]

    for settings in ({}, {"ascend_precision": "bf16"}):
        RowsStep(model, None, **settings)(loss)  # type: ignore[arg-type]
    with torch.autocast("cpu", torch.bfloat16):
        RowsStep(model, None)(loss)
    return seen


def test_each_pass_has_the_precision_that_was_asked_for(pool: Pool) -> None:
    whole, half = torch.float32, torch.bfloat16
    assert alone(precisions, pool) == [whole, whole, half, whole, half, half]


def refusals(rank: int, ranks: int) -> list[str]:
    frozen = collection()
    frozen.embedding_bags["t"].weight.requires_grad_(False)
    still = collection()
    makes: list[Callable[[], object]] = [
        lambda: RowsStep(sharded(collection(), collection(rows=20)), None),
        lambda: sharded(collection(pooling=PoolingType.MEAN, is_weighted=True)),
        lambda: sharded(frozen),
        lambda: sharded(still, norm="tabel"),
        lambda: sharded(still, rho=-1.0),
        lambda: sharded(still, lr=float("nan")),
        lambda: sharded(still, xi="half"),
        lambda: sharded(still, betas=(0.9, 1.0)),
        lambda: sharded(still, eps=0.0),
        lambda: sharded(still, frequency="dataset"),
        lambda: sharded(still, frequency="dataset", counts={"t": torch.ones(11, dtype=torch.int64)}),
        lambda: sharded(still, frequency="dataset", counts={"t": torch.full((10,), 0.5)}),
        lambda: RowsStep(sharded(collection()), None, perturb_dense="helen"),  # type: ignore[arg-type]
        lambda: RowsStep(sharded(collection()), None, ascend_precision="bfloat16"),  # type: ignore[arg-type]
        lambda: RowsStep(sharded(collection()), None, ascend_every=0),
        lambda: RowsStep(sharded(collection()), None, ascend_every=1.5),  # type: ignore[arg-type]
        lambda: RowsStep(sharded(collection()), None, clip_norm=-1.0),
        lambda: HelenSharder(lr=0.1, ascend_every=2),
        lambda: sharded(still, kind="table_column_wise"),
    ]
    found = []
    for make in makes:
        with pytest.raises(ConfigError) as raised:
            make()
        found.append(str(raised.value))
    return found


def test_what_cannot_be_stepped_is_refused_by_name(pool: Pool) -> None:
    said = [
        "two EmbeddingBagCollections have a table of one name, among t",
        "table t: a mean of weighted rows is another on every plan",
        "table t is frozen",
        "table t: norm 'tabel'; use row, table",
        "table t: rho -1.0 is not a number from 0 up",
        "table t: lr nan is not a number",
        "table t: xi 'half' is not a number",
        "table t: betas (0.9, 1.0); each is from 0 up and below 1",
        "table t: eps 0; a row whose gradient is 0",
        "table t: frequency dataset needs the training set's 10 counts, one whole number a row, not none",
        "not torch.int64 of shape (11,)",
        "not torch.float32 of shape (10,)",
        "perturb_dense 'helen'; use True or False",
        "ascend_precision 'bfloat16'; use 'fp32' or 'bf16'",
        "ascend_every 0; it is a whole number from 1 on",
        "ascend_every 1.5; it is a whole number from 1 on",
        "clip_norm -1.0 is not a number from 0 up",
        "ascend_every is a setting of RowsStep",
        "table t: engine rows does not know sharding table_column_wise; use table_wise, row_wise",
    ]
    for found, words in zip(alone(refusals, pool), said, strict=True):
        assert words in found
        assert "\n" not in found


def still_table(rank: int, ranks: int) -> bool:
    model = sharded(collection(), tables={"t": {"name": "sgd", "lr": 0.0}})
    step = RowsStep(model, None)
    before = table_of(step)
    step(lambda: model(ids(1, 2)).sum())
    return torch.equal(table_of(step), before)


def test_a_table_that_shall_not_move_does_not(pool: Pool) -> None:
    assert alone(still_table, pool)
