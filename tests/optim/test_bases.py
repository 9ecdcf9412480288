"""The base optimizers of rows, against torch's own and against loops."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparta.optim.bases import BASES, nadam_product
from sparta.optim.helen import Helen
from tests.optim.toys import DIM, ROWS, Batch, Toy, batch_of, batches, loss_of


def train(model: Toy, history: Sequence[Batch], *optimizers: torch.optim.Optimizer) -> None:
    for batch in history:
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss_of(model, batch).backward()
        for optimizer in optimizers:
            getattr(optimizer, "second_step", optimizer.step)()  # ours, without an ascent before it


def assert_equals_torch(
    base: Any,
    tables: Callable[..., torch.optim.Optimizer],
    *,
    within: float,
    sparse: bool = False,
    history: Sequence[Batch] = tuple(batch_of(seed) for seed in range(6)),
    **same: Any,
) -> None:
    """Helen without an ascent, and torch's optimizer of the tables beside Adam of the rest."""
    model, twin = Toy(dtype=torch.float64), Toy(dtype=torch.float64, sparse=sparse)
    train(model, history, Helen(model, base=base, **same))
    of_tables = [table.weight for table in twin.tables]
    others = [*twin.hidden.parameters(), *twin.out.parameters()]
    train(twin, history, tables(of_tables, **same), torch.optim.Adam(others, lr=same["lr"]))
    start = dict(Toy(dtype=torch.float64).named_parameters())
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=within)
        assert not torch.equal(p, start[name])


def test_adam_is_torchs_sparse_adam() -> None:
    """But for where eps stands: beside sqrt(v) there, beside sqrt(v_hat) here."""
    assert_equals_torch("adam", torch.optim.SparseAdam, within=1e-6, sparse=True, lr=0.01, betas=(0.8, 0.99))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_dense_adam_is_torchs_adam(weight_decay: float) -> None:
    same = {"lr": 0.05, "betas": (0.8, 0.99), "eps": 1e-3, "weight_decay": weight_decay}
    assert_equals_torch("dense_adam", torch.optim.Adam, within=1e-14, **same)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.8, 0.5)])  # the second is never rectified
@pytest.mark.parametrize("base, of_torch", [("nadam", torch.optim.NAdam), ("radam", torch.optim.RAdam)])
def test_nadam_and_radam_are_torchs(
    base: str, of_torch: type[torch.optim.Optimizer], betas: tuple[float, float]
) -> None:
    """Where every row is touched in every step: six of RAdam's, whose variance is not to be told, and six more."""
    everywhere = [list(range(rows)) for rows in ROWS]
    history = [
        Batch([[bag, *bags] for bag, bags in zip(everywhere, batch.bags, strict=True)], [1.0, *batch.labels])
        for batch in map(batch_of, range(12))
    ]
    same = {"lr": 0.05, "betas": betas, "eps": 1e-3}
    # torch keeps NAdam's product of momenta in float32
    assert_equals_torch(base, of_torch, within=1e-7, history=history, **same)


@pytest.mark.parametrize("beta1", [0.0, 0.9, 0.99])
@pytest.mark.parametrize("t", [1, 2, 50, 5000])
def test_the_product_of_nadams_momenta_is_that_of_all_steps(beta1: float, t: int) -> None:
    product = math.prod(beta1 * (1 - 0.5 * 0.96 ** (step * 0.004)) for step in range(1, t + 1))
    assert nadam_product(beta1, t) == pytest.approx(product, rel=1e-12, abs=2.0**-60)


def test_sgd_is_torchs_sgd() -> None:
    assert_equals_torch("sgd", torch.optim.SGD, within=1e-15, lr=0.3)


@given(st.lists(batches(), min_size=1, max_size=3))
@settings(deadline=None, max_examples=30)
def test_rowwise_adagrad_is_its_formula(history: list[Batch]) -> None:
    model = Toy(dtype=torch.float64)
    helen = Helen(model, base="rowwise_adagrad", lr=0.2, eps=1e-4)
    acc = [[0.0] * rows for rows in ROWS]
    for batch in history:
        helen.zero_grad()
        loss_of(model, batch).backward()
        expected = []
        for field, table in enumerate(model.tables):
            w = table.weight.tolist()
            g = table.weight.grad.tolist()
            for k in range(len(w)):
                acc[field][k] += sum(x * x for x in g[k]) / DIM
                if acc[field][k]:
                    w[k] = [
                        x - 0.2 * y / (math.sqrt(acc[field][k]) + 1e-4)
                        for x, y in zip(w[k], g[k], strict=True)
                    ]
            expected.append(torch.tensor(w, dtype=torch.float64))
        helen.second_step()
        for table, w_expected in zip(model.tables, expected, strict=True):
            torch.testing.assert_close(table.weight.detach(), w_expected, rtol=0, atol=1e-13)


def test_a_row_first_seen_late_moves_by_the_global_steps_bias_correction() -> None:
    """Its first moment is 0.1 g where bias correction expects (1 - 0.9^t) g: up to 3.2 times lr."""
    model = Toy(dtype=torch.float64)
    helen = Helen(model, lr=0.01)
    early, late = Batch([[[1]], [[1]]], [1.0]), Batch([[[2]], [[2]]], [1.0])
    train(model, [early] * 200, helen)
    before = model.tables[0].weight[2].detach().clone()
    train(model, [late], helen)
    moved = (model.tables[0].weight[2] - before).abs() / 0.01
    t = 201
    expected = 0.1 / (1 - 0.9**t) / math.sqrt(0.001 / (1 - 0.999**t))
    assert moved.tolist() == pytest.approx([expected] * DIM, rel=1e-4)
    assert expected < 3.2


@pytest.mark.parametrize("base", BASES)
def test_sparse_gradients_step_as_dense_ones(base: Any) -> None:
    dense, sparse = Toy(), Toy(sparse=True)
    for model in (dense, sparse):
        helen = Helen(model, base=base, lr=0.05)
        for seed in range(3):
            helen.zero_grad()
            loss_of(model, batch_of(seed)).backward()
            helen.ascend()
            helen.zero_grad()
            loss_of(model, batch_of(seed)).backward()
            helen.second_step()
    for p, q in zip(dense.parameters(), sparse.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)


def test_weight_decay_needs_a_base_that_moves_every_row() -> None:
    with pytest.raises(
        ValueError, match=r"weight_decay moves every row, which base adam does not; use dense_adam$"
    ):
        Helen(Toy(), weight_decay=0.1)
    with pytest.raises(ValueError, match=r"^table tables\.1: betas \(0\.9, 1\.0\) are not in \[0, 1\)$"):
        Helen(Toy(), tables={"tables.1": {"betas": (0.9, 1.0)}})
    with pytest.raises(ValueError, match=r"^table tables\.1: unknown setting 'radius'; known: lr, rho, xi, "):
        Helen(Toy(), tables={"tables.1": {"radius": 1}})
