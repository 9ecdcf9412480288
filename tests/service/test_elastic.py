"""R2: what a plan saves is what any plan saves, and training goes on from it under any plan on any number of ranks.

One model has tables of every kind of optimizer. The reference is one rank with whole tables.
"""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from sparta.models.deepfm import DeepFM
from sparta.models.embedding import Inputs
from sparta.models.errors import DataError
from sparta.service.step import FusedStep, RowStep, Step
from sparta.sharding.collectives import total
from sparta.sharding.engines import ENGINES, SHARDING_TYPES, TableOptimizer
from sparta.sharding.rows.step import RowsStep
from sparta.sharding.shard import Sharded, shard
from sparta.sharding.state import State, check_names
from tests.pool import Pool
from tests.service.test_step import pieces
from tests.sharding import toys

FIRST, MORE = 2, 20
AGAIN = 3
"""Steps after which two runs are compared to the bit."""
RANKS = (1, 2, 4)
REFERENCE = "table_wise-1"

OPTIMIZERS = {
    "rows": {
        "C1": TableOptimizer("helen", 0.02, base="adam", rho=0.05, weight_decay=0.5),
        "C2": TableOptimizer("rowwise_adagrad", 0.05),
        "tags": TableOptimizer("helen", 0.05, base="rowwise_adagrad", rho=0.05),
        "few": TableOptimizer("nadam", 0.02, weight_decay=2.0, l2=0.01),
        "C1.wide": TableOptimizer("sgd", 0.05),
    },
    "fbgemm": {
        "C1": TableOptimizer("rowwise_adagrad", 0.05, engine="fbgemm"),
        "C2": TableOptimizer("adagrad", 0.05, engine="fbgemm"),
        "tags": TableOptimizer("sgd", 0.05, engine="fbgemm"),
        "few": TableOptimizer("rowwise_adagrad", 0.05, engine="fbgemm"),
        "C1.wide": TableOptimizer("rowwise_adagrad", 0.05, engine="fbgemm"),
    },
}
WHOLE_ROWS = ("table_wise", "row_wise", "table_row_wise")
"""Kinds of plans between which engine fbgemm's row-wise Adagrad is the same."""


@dataclass(frozen=True)
class Job:
    """A model under a plan, and its step."""

    sharded: Sharded
    step: Step
    rank: int
    ranks: int

    def state(self) -> State:
        return {**self.sharded.state_dict(), **self.step.state_dict()}

    def train(self, steps: range) -> list[float]:
        """The losses of the global batches."""
        return [float(total(self.step(toys.batch(n, self.rank, self.ranks)).clone())) for n in steps]

    def bits(self) -> str:
        """A digest of all that this rank has of weights and state."""
        digest = hashlib.sha256()
        for name, piece in pieces(self.sharded, self.step).items():
            digest.update(name.encode() + piece.numpy().tobytes())
        return digest.hexdigest()

    def load(self, folder: Path) -> None:
        state = self.state()
        check_names(state.keys(), FileSystemReader(folder).read_metadata().state_dict_metadata.keys())
        dcp.load(state, checkpoint_id=str(folder))
        weights = self.sharded.state_dict().keys()
        self.sharded.load_state_dict({name: state[name] for name in weights})
        self.step.load_state_dict({name: state[name] for name in state.keys() - weights})


def job(engine: str, kind: str, rank: int, ranks: int) -> Job:
    torch.manual_seed(3)
    # Without batch norm, which takes most of a small model's collectives and whose averages no step depends on.
    model = DeepFM(Inputs(toys.SCHEMA, 10), hidden=(8,), dropout=0.2)
    optimizers = OPTIMIZERS[engine]
    sharded = shard(
        model,
        toys.planned(kind, "sgd", ranks=ranks, local_ranks=min(2, ranks), engine=engine),
        optimizers={one.name: optimizers.get(one.name, optimizers["few"]) for one in model.embeddings.specs},
        device=torch.device("cpu"),
        seed=toys.SEED,
        init_std=toys.STD,
    )
    dense = torch.optim.Adam(sharded.dense_parameters().values(), lr=toys.DENSE_LR)
    if engine == "fbgemm":
        return Job(sharded, FusedStep(sharded, dense, ranks=ranks), rank, ranks)
    return Job(sharded, RowStep(sharded, dense, RowsStep(sharded.module, dense), ranks=ranks), rank, ranks)


def save_all(rank: int, ranks: int, engine: str, folder: Path) -> tuple[list[float], dict[str, str]]:
    """Train a little and save under every plan; the reference's further losses, and where the bits then are."""
    losses, bits = [], {}
    for kind in ENGINES[engine].sharding_types:
        mine = job(engine, kind, rank, ranks)
        mine.train(range(FIRST))
        dcp.save(mine.state(), checkpoint_id=str(folder / f"{kind}-{ranks}"))
        further = mine.train(range(FIRST, FIRST + AGAIN))
        bits[kind] = mine.bits()
        if f"{kind}-{ranks}" == REFERENCE:
            losses = further + mine.train(range(FIRST + AGAIN, FIRST + MORE))
    return losses, bits


def go_on(
    rank: int, ranks: int, engine: str, folder: Path, pairs: Sequence[tuple[str, str]], steps: int
) -> list[tuple[list[float], str]]:
    """Losses under a plan after loading a checkpoint, and where the bits then are."""
    found = []
    for kind, source in pairs:
        mine = job(engine, kind, rank, ranks)
        mine.load(folder / source)
        losses = mine.train(range(FIRST, FIRST + steps))
        found.append((losses, mine.bits()))
    return found


@dataclass(frozen=True)
class Saved:
    """Checkpoints of one engine under every plan on every number of ranks, and what came after."""

    pool: Pool
    engine: str
    folder: Path
    losses: list[float]
    """Of the reference, after the checkpoint."""
    bits: dict[str, list[str]]
    """By checkpoint and rank."""

    def go_on(self, ranks: int, pairs: Sequence[tuple[str, str]], steps: int) -> list[Any]:
        return self.pool.run(ranks, go_on, self.engine, self.folder, pairs, steps, local_ranks=min(2, ranks))

    def assert_saved_alike(self, kinds: Sequence[str]) -> None:
        """All of these are the reference."""
        expected = on_disk(self.folder / REFERENCE)
        for name in [f"{kind}-{ranks}" for kind in kinds for ranks in RANKS]:
            found = on_disk(self.folder / name)
            assert found.keys() == expected.keys()
            for key, tensor in expected.items():
                bound = 1e-4 * float(tensor.double().abs().max())
                torch.testing.assert_close(found[key], tensor, rtol=0, atol=bound, msg=f"{key} of {name}")

    def assert_goes_on(self, ranks: int, pairs: Sequence[tuple[str, str]], steps: int) -> None:
        """From these checkpoints on each of these plans has the reference's losses."""
        for losses, _ in self.go_on(ranks, pairs, steps)[0]:
            torch.testing.assert_close(losses, self.losses[:steps], rtol=1e-5, atol=0)

    def assert_same_bits(self, ranks: int) -> None:
        """Under the plan that saved it every checkpoint goes on as if there had been none."""
        kinds = ENGINES[self.engine].sharding_types
        found = self.go_on(ranks, [(kind, f"{kind}-{ranks}") for kind in kinds], AGAIN)
        for number, kind in enumerate(kinds):
            assert [of_rank[number][1] for of_rank in found] == self.bits[f"{kind}-{ranks}"], kind


def on_disk(folder: Path) -> dict[str, Tensor]:
    """A checkpoint as whole tensors, read without ranks."""
    held = FileSystemReader(folder).read_metadata().state_dict_metadata
    state = {
        name: torch.empty(of.size, dtype=of.properties.dtype)
        for name, of in held.items()
        if isinstance(of, TensorStorageMetadata)
    }
    assert state.keys() == held.keys()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is ", UserWarning)
        dcp.load(state, checkpoint_id=str(folder), no_dist=True)
    return state


def saved_by(pool: Pool, engine: str, folder: Path) -> Saved:
    losses, bits = [], {}
    for ranks in RANKS:
        found = pool.run(ranks, save_all, engine, folder, local_ranks=min(2, ranks))
        losses += found[0][0]
        bits |= {f"{kind}-{ranks}": [of_rank[kind] for _, of_rank in found] for kind in found[0][1]}
    return Saved(pool, engine, folder, losses, bits)


@pytest.fixture(scope="module")
def rows(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return saved_by(pool, "rows", tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def fbgemm(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return saved_by(pool, "fbgemm", tmp_path_factory.mktemp("fbgemm"))


def test_every_plan_saves_the_reference(rows: Saved) -> None:
    rows.assert_saved_alike(SHARDING_TYPES)
    names = on_disk(rows.folder / REFERENCE)
    kinds = {name.rpartition("/")[2] for name in names if name.startswith("optim/")}
    assert kinds == {"exp_avg", "exp_avg_sq", "sum", "count", "pending", "step"}


@pytest.mark.parametrize("ranks", RANKS)
def test_every_plan_goes_on_from_the_reference(rows: Saved, ranks: int) -> None:
    rows.assert_goes_on(ranks, [(kind, REFERENCE) for kind in SHARDING_TYPES], MORE)


def test_row_wise_state_goes_on_where_torchrec_refuses_it(rows: Saved) -> None:
    pairs = [
        ("table_wise", "column_wise-4"),
        ("column_wise", "table_wise-4"),
        ("table_wise", "data_parallel-4"),
    ]
    rows.assert_goes_on(2, pairs, 2 * AGAIN)


@pytest.mark.parametrize("ranks", RANKS)
def test_the_same_plan_goes_on_to_the_bit(rows: Saved, ranks: int) -> None:
    rows.assert_same_bits(ranks)


def test_fbgemm_saves_the_reference_where_rows_are_whole(fbgemm: Saved) -> None:
    fbgemm.assert_saved_alike(WHOLE_ROWS)


@pytest.mark.parametrize("ranks", RANKS)
def test_fbgemm_goes_on_under_another_plan_where_rows_are_whole(fbgemm: Saved, ranks: int) -> None:
    fbgemm.assert_goes_on(ranks, [(kind, REFERENCE) for kind in WHOLE_ROWS], 2 * AGAIN)


@pytest.mark.parametrize("ranks", RANKS)
def test_fbgemm_goes_on_under_the_same_plan_to_the_bit(fbgemm: Saved, ranks: int) -> None:
    fbgemm.assert_same_bits(ranks)


def test_fbgemm_takes_the_same_columns_to_other_ranks(fbgemm: Saved) -> None:
    (four, _), (two, _) = fbgemm.go_on(2, [("column_wise", f"column_wise-{n}") for n in (4, 2)], 2 * AGAIN)[0]
    torch.testing.assert_close(four, two, rtol=1e-5, atol=0)


def refusals(rank: int, ranks: int, fused: Path, rows: Path) -> list[str]:
    messages = []
    for kind, source in (
        ("table_wise", fused / "column_wise-2"),
        ("column_wise", fused / "row_wise-2"),
        ("table_wise", rows / "table_wise-2"),
    ):
        with pytest.raises(DataError) as raised:
            job("fbgemm", kind, rank, ranks).load(source)
        messages.append(str(raised.value))
    return messages


def test_fbgemm_refuses_other_columns_and_engines_by_name(fbgemm: Saved, rows: Saved) -> None:
    for found in fbgemm.pool.run(2, refusals, fbgemm.folder, rows.folder):
        for message in found[:2]:
            assert message.startswith("optim/C1/sum@")
            assert "columns 0:4,4:8,8:12" in message
            assert "columns 0:12" in message
        assert found[2].startswith("optim/C1")
