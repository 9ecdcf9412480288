"""The drop-in for TorchRec scripts: no trainer, job file, dataset or plan of ours, only TorchRec's own planner."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, PoolingType
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.optim.optimizers import in_backward_optimizer_filter

from sparta.models.errors import ConfigError
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
