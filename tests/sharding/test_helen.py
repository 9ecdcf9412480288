"""The drop-in for TorchRec scripts: no trainer, job file, dataset or plan of ours, only TorchRec's own planner."""

from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, PoolingType
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.optim.optimizers import in_backward_optimizer_filter

from sparta.models.errors import ConfigError
from sparta.optim import Helen
from sparta.sharding import HelenSharder, RowsStep
from tests.pool import Pool

GLOBAL = 16
ROWS = {"country": 11, "item": 40, "shared": 23}
FEATURES = {"country": ["country"], "item": ["item"], "shared": ["liked", "seen"]}
KEYS = [feature for features in FEATURES.values() for feature in features]


def alike(weights: Tensor) -> Tensor:
    return nn.init.constant_(weights, 0.1)


class Script(nn.Module):
    """What a user of TorchRec has: a collection with sum and mean pooling and a table of two features."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.tables = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name=name,
                    embedding_dim=8,
                    num_embeddings=rows,
                    feature_names=FEATURES[name],
                    pooling=PoolingType.MEAN if name == "item" else PoolingType.SUM,
                    init_fn=alike,  # TorchRec's own depends on the plan
                )
                for name, rows in ROWS.items()
            ],
            device=torch.device("cpu"),
        )
        self.over = nn.Sequential(nn.Linear(8 * len(KEYS), 6), nn.ReLU(), nn.Dropout(0.0), nn.Linear(6, 1))

    def forward(self, sparse: KeyedJaggedTensor) -> Tensor:
        pooled = self.tables(sparse)
        logits: Tensor = self.over(torch.cat([pooled[key] for key in KEYS], dim=1))
        return logits.squeeze(1)


def given(step: int, rank: int, ranks: int) -> tuple[KeyedJaggedTensor, Tensor]:
    """A rank's share of a batch with repeats and empty bags, and its labels."""
    generator = torch.Generator().manual_seed(step)
    share = slice(rank * GLOBAL // ranks, (rank + 1) * GLOBAL // ranks)
    values, lengths = [], []
    for key in KEYS:
        rows = next(ROWS[name] for name, features in FEATURES.items() if key in features)
        counts = torch.randint(0, 4, (GLOBAL,), generator=generator)
        bags = [torch.randint(0, rows, (int(n),), generator=generator) ** 2 % rows for n in counts]
        values += bags[share]
        lengths.append(counts[share])
    labels = torch.randint(0, 2, (GLOBAL,), generator=generator).float()
    return KeyedJaggedTensor(KEYS, torch.cat(values), lengths=torch.cat(lengths)), labels[share]


def script(
    rank: int, ranks: int, sharding: str, settings: dict[str, object]
) -> tuple[list[float], dict[str, Tensor]]:
    """The README's script: losses of 12 steps, and what the tables became."""
    device = torch.device("cpu")
    sharder = HelenSharder(lr=0.05, rho=0.05, **settings)  # type: ignore[arg-type]
    model = Script()
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=ranks, local_world_size=min(2, ranks), compute_device="cpu"),
        constraints={name: ParameterConstraints(sharding_types=[sharding], min_partition=4) for name in ROWS},
    )
    plan = planner.collective_plan(model, [sharder], dist.group.WORLD)
    dmp = DistributedModelParallel(model, device=device, plan=plan, sharders=[sharder])
    dense = torch.optim.Adam(dict(in_backward_optimizer_filter(dmp.named_parameters())).values(), lr=0.01)
    step = RowsStep(dmp, dense)
    losses = []
    for number in range(12):
        sparse, labels = given(number, rank, ranks)
        loss = step(lambda: nn.functional.binary_cross_entropy_with_logits(dmp(sparse), labels))  # noqa: B023
        dist.all_reduce(loss)
        losses.append(float(loss) / ranks)
    dmp.eval()
    with torch.no_grad():
        whole, _ = given(99, 0, 1)
        probe = whole if ranks == 1 else given(99, rank, ranks)[0]
        logits = dmp(probe)
    return losses, {"logits": logits}


SHARDINGS = ["table_wise", "row_wise", "column_wise", "table_row_wise", "data_parallel"]


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_a_torchrec_script_trains_the_same_on_any_plan(pool: Pool, sharding: str, ranks: int) -> None:
    losses, first = pool.run(1, script, "table_wise", {})[0]
    found = pool.run(ranks, script, sharding, {}, local_ranks=min(2, ranks))
    torch.testing.assert_close(found[0][0], losses, rtol=1e-5, atol=0)
    logits = torch.cat([state["logits"] for _, state in found])
    torch.testing.assert_close(logits, first["logits"], rtol=1e-4, atol=1e-5)


def misspelt(rank: int, ranks: int) -> list[str]:
    messages = []
    for settings in (
        {"tables": {"countri": {"name": "adam"}}},
        {"rhoo": 1},
        {"tables": {"item": {"lrr": 1}}},
    ):
        with pytest.raises(ConfigError) as raised:
            script(rank, ranks, "table_wise", settings)
        messages.append(str(raised.value))
    return messages


def test_what_is_misspelt_is_named(pool: Pool) -> None:
    table, setting, of_table = pool.run(1, misspelt)[0]
    assert "'countri'" in table
    assert "did you mean 'country'?" in table
    assert "unknown setting 'rhoo'" in setting
    assert "table item: unknown setting 'lrr'" in of_table


class Weighted(nn.Module):
    """A collection with per-sample weights, learned or not; it makes its KeyedJaggedTensor itself, in each pass."""

    def __init__(self, *, learned: bool) -> None:
        super().__init__()
        self.tables = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name="item", embedding_dim=8, num_embeddings=40, feature_names=["item"], init_fn=alike
                )
            ],
            is_weighted=True,
            device=torch.device("cpu"),
        )
        self.ages = nn.Parameter(torch.linspace(0.5, 1.5, 40), requires_grad=learned)
        torch.manual_seed(3)
        self.over = nn.Linear(8, 1)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        weights = self.ages[ids].exp()
        sparse = KeyedJaggedTensor(["item"], ids, weights=weights, lengths=lengths)
        logits: Tensor = self.over(self.tables(sparse)["item"])
        return logits.squeeze(1)


class PlainBag(nn.Module):
    """In its place without TorchRec."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(40, 8, mode="sum", include_last_offset=True)
        alike(self.bag.weight.data)

    def forward(self, sparse: KeyedJaggedTensor) -> dict[str, Tensor]:
        pooled: Tensor = self.bag(sparse.values(), sparse.offsets(), per_sample_weights=sparse.weights())
        return {"item": pooled}


def one_bag(step: int, rank: int, ranks: int) -> tuple[Tensor, Tensor, Tensor]:
    sparse, labels = given(step, rank, ranks)
    of_item = sparse["item"]
    return of_item.values(), of_item.lengths(), labels


def weighted_script(rank: int, ranks: int, sharding: str, learned: bool) -> tuple[list[float], Tensor]:
    sharder, model = HelenSharder(lr=0.05, rho=0.05), Weighted(learned=learned)
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=ranks, local_world_size=min(2, ranks), compute_device="cpu"),
        constraints={"item": ParameterConstraints(sharding_types=[sharding], min_partition=4)},
    )
    plan = planner.collective_plan(model, [sharder], dist.group.WORLD)
    dmp = DistributedModelParallel(model, device=torch.device("cpu"), plan=plan, sharders=[sharder])
    dense = dict(in_backward_optimizer_filter(dmp.named_parameters()))
    step = RowsStep(dmp, torch.optim.SGD(dense.values(), lr=0.5))
    losses = []
    for number in range(8):
        ids, lengths, labels = one_bag(number, rank, ranks)
        loss = step(lambda: nn.functional.binary_cross_entropy_with_logits(dmp(ids, lengths), labels))  # noqa: B023
        dist.all_reduce(loss)
        losses.append(float(loss) / ranks)
    return losses, dmp.module.ages.detach().clone()


def plain_weighted(learned: bool) -> tuple[list[float], Tensor]:
    model = Weighted(learned=learned)
    model.tables = PlainBag()  # type: ignore[assignment]
    optimizer = Helen(model, lr=0.05, rho=0.05, dense=partial(torch.optim.SGD, lr=0.5))
    losses = []
    for number in range(8):
        ids, lengths, labels = one_bag(number, 0, 1)

        def closure() -> Tensor:
            loss = nn.functional.binary_cross_entropy_with_logits(model(ids, lengths), labels)  # noqa: B023
            loss.backward()
            return loss

        losses.append(float(optimizer.step(closure)))
    return losses, model.ages.detach()


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_weights_of_single_ids_scale_their_rows(pool: Pool, sharding: str, ranks: int) -> None:
    # TorchRec sends weights to other ranks outside autograd: they get a gradient only where they stay.
    learned = sharding == "data_parallel" or (sharding != "column_wise" and ranks == 1)
    losses, ages = plain_weighted(learned)
    assert learned == bool((ages - torch.linspace(0.5, 1.5, 40)).abs().max() > 1e-3)
    for found, mine in pool.run(ranks, weighted_script, sharding, learned):
        torch.testing.assert_close(found, losses, rtol=1e-5, atol=0)
        torch.testing.assert_close(mine, ages, rtol=1e-4, atol=1e-6)


def called_twice(rank: int, ranks: int) -> str:
    sharder, model = HelenSharder(lr=0.05, rho=0.05), Weighted(learned=False)
    plan = EmbeddingShardingPlanner(
        topology=Topology(world_size=ranks, compute_device="cpu")
    ).collective_plan(model, [sharder], dist.group.WORLD)
    dmp = DistributedModelParallel(model, device=torch.device("cpu"), plan=plan, sharders=[sharder])
    (ids, lengths, _), (others, more, _) = one_bag(0, rank, ranks), one_bag(1, rank, ranks)
    with pytest.raises(RuntimeError) as raised:
        RowsStep(dmp, None)(lambda: (dmp(ids, lengths) * dmp(others, more)).sum())
    return str(raised.value)


def test_a_collection_that_is_called_twice_in_a_pass_is_refused(pool: Pool) -> None:
    """One of the two gradients would be lost."""
    assert "called twice in one forward pass" in pool.run(1, called_twice)[0]
