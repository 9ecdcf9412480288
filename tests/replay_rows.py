"""Replays a trajectory on the sharded rows engine, on ranks that are processes, and compares all that it shows.

One process sees the whole of each table between the passes, so eps, weights, moments, counts and both losses are
compared; what only the oracle shows (gradients by row) is left out.
"""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel, sharding_plan
from torchrec.distributed.types import ShardingPlan

from sparta.sharding.collectives import gather
from sparta.sharding.helen import HelenSharder
from sparta.sharding.rows.step import RowsStep
from sparta.sharding.state import Window, local_shards
from tests.pool import Pool, RankError
from tests.sharding.whole import assembled, whole_state
from tests.trajectory import BASES, DENSE, Errors, Trajectory, TrajectoryError, bce

PLANS = ("table_wise", "row_wise", "column_wise", "table_row_wise", "data_parallel")


def errors(file: Trajectory, ranks: int = 1, plan: str | None = None) -> dict[str, float]:
    """The largest absolute error of every array that the file and the engine have."""
    plan = plan or "table_wise"
    check(file, ranks, plan)
    with tempfile.TemporaryDirectory() as folder:
        pool = Pool(Path(folder), size=ranks)
        try:
            return pool.run(ranks, replay, file.path, plan, local_ranks=min(2, ranks))[0]  # type: ignore[no-any-return]
        except RankError as error:
            raise TrajectoryError(f"{file.path}: {str(error).splitlines()[-1]}") from error
        finally:
            pool.close()


def check(file: Trajectory, ranks: int, plan: str) -> None:
    """Refuse what the file's shapes do not allow."""
    samples, dim = file.arrays["labels"].shape[1], file.arrays["table0"].shape[2]
    if plan not in PLANS:
        raise TrajectoryError(f"--plan {plan}: no such sharding type; use {', '.join(PLANS)}")
    if samples % ranks:
        raise TrajectoryError(f"--ranks {ranks}: does not divide the {samples} samples of a batch")
    if plan == "column_wise" and (dim < 8 or dim % 4):
        raise TrajectoryError(
            f"--plan column_wise: {dim} columns do not make two shards of 4; use another plan"
        )


class _Model(nn.Module):
    """The files' model on an EmbeddingBagCollection."""

    def __init__(self, file: Trajectory) -> None:
        super().__init__()
        self.keys = file.tables
        self.bags = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name=key,
                    num_embeddings=file.arrays[key].shape[1],
                    embedding_dim=file.arrays[key].shape[2],
                    feature_names=[key],
                )
                for key in file.tables
            ],
            device=torch.device("meta"),
        )
        for key in DENSE:
            self.register_parameter(key, nn.Parameter(file.arrays[key][0].float()))

    def forward(self, sparse: KeyedJaggedTensor) -> Tensor:
        pooled = self.bags(sparse)
        h = (torch.cat([pooled[key] for key in self.keys], dim=1) @ self.W1.T + self.b1).relu()
        return (h @ self.W2.T + self.b2).squeeze(1)


def replay(rank: int, ranks: int, path: Path, plan: str) -> dict[str, float]:
    """The errors, the same on every rank; collective."""
    file = Trajectory.read(path)
    hyper, samples = file.hyper, file.arrays["labels"].shape[1]
    base = BASES[hyper["base"]]
    adam = {"betas": tuple(hyper["betas"]), "eps": hyper["eps"]}
    sharder = HelenSharder(
        lr=hyper["lr_embed"],
        rho=hyper["rho"],
        xi=hyper["xi"],
        frequency=hyper["count_mode"],
        base=base,
        **adam,
    )
    model, module = placed(file, sharder, plan, ranks)
    parameters = {key: p for key, p in model.named_parameters() if key in DENSE}
    make: Any = partial(torch.optim.Adam, **adam) if base == "adam" else torch.optim.SGD
    dense = make(list(parameters.values()), lr=hyper["lr_net"])
    step = RowsStep(module, dense, perturb_dense=bool(hyper["net_pert"]), rho=hyper["rho"])
    share = slice(rank * samples // ranks, (rank + 1) * samples // ranks)
    found = Errors(file)
    before = weights(file, module, parameters)
    found.see(0, before)
    for number in range(file.steps):
        sparse = jagged(file, number, share)
        labels = file.arrays["labels"][number][share].float()
        seen: list[dict[str, Tensor]] = []

        def loss() -> Tensor:
            value = bce(module(sparse), labels)  # noqa: B023
            whole = value.detach().clone()
            dist.all_reduce(whole)
            now = weights(file, module, parameters)
            seen.append({"loss": whole / ranks, **now})  # noqa: B023
            return value

        step(loss)
        found.see(number, {"loss1": seen[0]["loss"], "loss2": seen[1]["loss"]})
        found.see(number, {f"eps_{key}": seen[1][key] - before[key] for key in before})
        before, state = weights(file, module, parameters), whole_state(step)
        found.see(number + 1, {**before, **moments(state, dense, parameters)})
        counts = {key: x[:, 0] for key, x in state.items() if key.endswith("/count")}
        found.see(
            number, {f"N{j}": counts[f"optim/{key}/count"] for j, key in enumerate(file.tables) if counts}
        )
    return found.largest


def placed(file: Trajectory, sharder: HelenSharder, plan: str, ranks: int) -> tuple[_Model, nn.Module]:
    """The model and its sharded wrapper, at the file's step 0."""
    model = _Model(file)
    kinds = {
        "table_wise": lambda j: sharding_plan.table_wise(rank=j % ranks),
        "row_wise": lambda j: sharding_plan.row_wise(),
        "column_wise": lambda j: sharding_plan.column_wise(ranks=[j % ranks, (j + 1) % ranks]),
        "table_row_wise": lambda j: sharding_plan.table_row_wise(host_index=j % max(1, ranks // 2)),
        "data_parallel": lambda j: sharding_plan.data_parallel(),
    }
    found = sharding_plan.construct_module_sharding_plan(
        model.bags,
        per_param_sharding={key: kinds[plan](j) for j, key in enumerate(file.tables)},
        sharder=sharder,
        local_size=min(2, ranks),
        world_size=ranks,
        device_type="cpu",
    )
    module: nn.Module = DistributedModelParallel(
        model, device=torch.device("cpu"), plan=ShardingPlan({"bags": found}), sharders=[sharder]
    )
    with torch.no_grad():
        for name, row, column, live in local_shards(module):
            rows, columns = live.shape
            live.copy_(file.arrays[name][0][row : row + rows, column : column + columns])
    return model, module


def jagged(file: Trajectory, step: int, share: slice) -> KeyedJaggedTensor:
    """A rank's share of a step's bags."""
    values, lengths = [], []
    for ids, of_bags in file.bags(step):
        ends = torch.cat([of_bags.new_zeros(1), of_bags.cumsum(0)])
        values.append(ids[ends[share.start] : ends[share.stop]])
        lengths.append(of_bags[share])
    return KeyedJaggedTensor(list(file.tables), torch.cat(values), lengths=torch.cat(lengths).int())


def weights(file: Trajectory, module: nn.Module, dense: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """All parameters by the file's keys, tables whole; collective."""
    mine = [(name, Window(row, column, live.clone())) for name, row, column, live in local_shards(module)]
    everything = [pair for part in gather(mine) for pair in part]
    found = {
        key: assembled(
            tuple(file.arrays[key].shape[1:]), [window for name, window in everything if name == key]
        )
        for key in file.tables
    }
    return found | {key: p.detach().double().clone() for key, p in dense.items()}


def moments(
    state: dict[str, Tensor], dense: torch.optim.Optimizer, parameters: dict[str, nn.Parameter]
) -> dict[str, Tensor]:
    """The optimizers' state by the file's keys; `state` is the tables'."""
    found = {}
    for name, value in state.items():
        table, _, kind = name.removeprefix("optim/").partition("/")
        if kind == "sum":
            found[f"acc_{table}"] = value[:, 0]
        elif kind.startswith("exp"):
            found[f"{kind}_{table}"] = value
    for key, p in parameters.items():
        found |= {f"{kind}_{key}": x for kind, x in dense.state[p].items() if kind.startswith("exp")}
    return found
