"""Laws of Helen's ascent, against Algorithm 1 as loops over rows."""

# k = a row, g = its gradient

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparta.optim.bases import BASES
from sparta.optim.helen import Helen
from tests.optim.toys import (
    ROWS,
    Batch,
    Toy,
    assert_same_bits,
    batch_of,
    batches,
    bits,
    closure,
    loss_of,
)

RHO, XI = 0.05, 0.3


def ascent(model: Toy, helen: Helen, batch: Batch) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """One ascend; (gradient, how far it went) of every parameter. The weights stay uphill."""
    helen.zero_grad()
    loss_of(model, batch).backward()
    before = [p.detach().clone() for p in model.parameters()]
    gradients = [
        torch.zeros_like(p) if p.grad is None else p.grad.to_dense().clone() for p in model.parameters()
    ]
    helen.ascend()
    return gradients, [p.detach() - b for p, b in zip(model.parameters(), before, strict=True)]


def radii(counts: list[int], *, xi: float, missing: bool = True) -> list[float]:
    largest = max(counts if missing else counts[1:])
    return [RHO * max(min(count / max(largest, 1), 1.0), xi) for count in counts]


def assert_goes(
    epsilon: torch.Tensor, gradient: torch.Tensor, radius: list[float], norm: float | None
) -> None:
    """epsilon_k = radius_k g_k / norm, by rows; the row's own norm where None."""
    for k, radius_k in enumerate(radius):
        g = gradient[k].tolist()
        length = math.sqrt(sum(x * x for x in g)) if norm is None else norm
        expected = [radius_k * x / length if length else 0.0 for x in g]
        assert epsilon[k].tolist() == pytest.approx(expected, abs=1e-12)


@given(st.lists(batches(), min_size=1, max_size=3), st.sampled_from(["row", "table"]), st.booleans())
@settings(deadline=None, max_examples=50)
def test_epsilon_is_algorithm_1(history: list[Batch], norm: str, missing: bool) -> None:
    model = Toy(dtype=torch.float64)
    helen = Helen(model, rho=RHO, xi=XI, norm=norm, count_missing=missing, base="sgd")
    seen = [[0] * rows for rows in ROWS]
    for batch in history:
        gradients, epsilons = ascent(model, helen, batch)
        for field, rows in enumerate(ROWS):
            seen[field] = [n + c for n, c in zip(seen[field], batch.counts(field, rows), strict=True)]
            g = gradients[field]
            whole = math.sqrt(sum(x * x for x in g.flatten().tolist())) if norm == "table" else None
            assert_goes(epsilons[field], g, radii(seen[field], xi=XI, missing=missing), whole)
        for epsilon in epsilons[len(ROWS) :]:
            assert not epsilon.any()
        helen.second_step()


@given(st.lists(batches(), min_size=2, max_size=2))
@settings(deadline=None, max_examples=50)
def test_batch_frequency_forgets_earlier_batches(history: list[Batch]) -> None:
    model = Toy(dtype=torch.float64)
    helen = Helen(model, rho=RHO, xi=XI, frequency="batch")
    for batch in history:
        gradients, epsilons = ascent(model, helen, batch)
        for field, rows in enumerate(ROWS):
            assert_goes(epsilons[field], gradients[field], radii(batch.counts(field, rows), xi=XI), None)
        helen.second_step()


@given(batches())
@settings(deadline=None, max_examples=50)
def test_cumulative_is_batch_at_the_first_step(batch: Batch) -> None:
    models = [Toy(), Toy()]
    for model, frequency in zip(models, ("cumulative", "batch"), strict=True):
        ascent(model, Helen(model, rho=RHO, xi=0.0, frequency=frequency), batch)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_dataset_frequency_is_constant() -> None:
    model = Toy(dtype=torch.float64)
    counts = {f"tables.{field}": torch.arange(rows).flip(0) ** 2 for field, rows in enumerate(ROWS)}
    helen = Helen(model, rho=RHO, xi=XI, frequency="dataset", counts=counts)
    for step in range(3):
        gradients, epsilons = ascent(model, helen, batch_of(step))
        for field in range(len(ROWS)):
            radius = radii(counts[f"tables.{field}"].tolist(), xi=XI)
            assert_goes(epsilons[field], gradients[field], radius, None)
        helen.second_step()


def test_missing_ids_left_out_of_the_largest_frequency_do_not_go_beyond_the_radius() -> None:
    """Id 0 fills most of the batch; with count_missing false the next frequent id has the whole radius."""
    batch = Batch([[[0, 0, 0, 1], [1, 2]], [[0], [0]]], [0.0, 1.0])
    shares = {}
    for missing in (True, False):
        model = Toy(dtype=torch.float64)
        helen = Helen(model, rho=RHO, xi=0.0, count_missing=missing)
        ascent(model, helen, batch)
        shares[missing] = [helen.share(table).tolist() for table in helen.tables.values()]
    assert shares == {True: [[1, 2 / 3, 1 / 3], [1]], False: [[1, 1, 1 / 2], [1]]}


@given(batches(), st.sampled_from([1.0, 1.7]))
@settings(deadline=None, max_examples=50)
def test_xi_from_1_up_is_a_uniform_radius(batch: Batch, xi: float) -> None:
    model = Toy(dtype=torch.float64)
    helen = Helen(model, rho=RHO, xi=xi)
    gradients, epsilons = ascent(model, helen, batch)
    for gradient, epsilon in zip(gradients[: len(ROWS)], epsilons[: len(ROWS)], strict=True):
        moving = gradient.any(dim=1)
        lengths = epsilon.norm(dim=1)
        assert lengths[moving].tolist() == pytest.approx([RHO * xi] * int(moving.sum()))
        assert not lengths[~moving].any()


@pytest.mark.parametrize("base", BASES)
@given(history=st.lists(batches(), min_size=1, max_size=3), dense=st.booleans())
@settings(deadline=None, max_examples=20)
def test_zero_radius_is_the_base_optimizer_bit_for_bit(base: Any, history: list[Batch], dense: bool) -> None:
    helen_model, base_model = Toy(dropout=0.2, batch_norm=True), Toy(dropout=0.2, batch_norm=True)
    helen = Helen(helen_model, rho=0.0, base=base, perturb_dense=dense)
    plain = Helen(base_model, rho=RHO, base=base)
    for step, batch in enumerate(history):
        if len(batch.labels) == 1:
            continue  # batch norm knows nothing of one sample
        torch.manual_seed(step)
        loss = helen.step(closure(helen_model, batch))
        torch.manual_seed(step)
        plain.zero_grad()
        expected = closure(base_model, batch)()
        plain.second_step()
        assert torch.equal(loss, expected)
    assert_same_bits(bits(helen_model, helen), bits(base_model, plain))


@pytest.mark.parametrize("base", ["sgd", "adam", "rowwise_adagrad"])
@given(first=batches(), second=batches())
@settings(deadline=None, max_examples=20)
def test_untouched_rows_and_their_state_keep_their_bits(base: Any, first: Batch, second: Batch) -> None:
    model = Toy()
    helen = Helen(model, rho=RHO, base=base)
    helen.step(closure(model, first))  # gives the rows a state to lose
    before = bits(model, helen)
    helen.step(closure(model, second))
    after = bits(model, helen)
    for field, rows in enumerate(ROWS):
        counts = torch.tensor(second.counts(field, rows))
        per_row = [key for key, x in before.items() if f"tables.{field}" in key and x.ndim and len(x) == rows]
        assert len(per_row) == {"sgd": 2, "adam": 4, "rowwise_adagrad": 3}[base]
        for key in per_row:
            assert torch.equal(before[key][counts == 0], after[key][counts == 0]), key


@given(batches(), st.sampled_from(["row", "table"]), st.booleans())
@settings(deadline=None, max_examples=50)
def test_restore_is_bit_exact(batch: Batch, norm: str, dense: bool) -> None:
    model = Toy()
    helen = Helen(model, rho=3.0, norm=norm, perturb_dense=dense)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ascent(model, helen, batch)
    helen.restore()
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]), name


@pytest.mark.parametrize("norm", ["row", "table"])
def test_a_gradient_of_zero_goes_nowhere_and_is_touched_all_the_same(norm: Any) -> None:
    model = Toy()
    helen = Helen(model, rho=RHO, norm=norm, perturb_dense=True)
    helen.step(closure(model, batch_of(1)))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    loss_of(model, batch_of(1)).backward()
    for p in model.parameters():
        assert p.grad is not None
        p.grad.zero_()
    helen.ascend()
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]), name
    helen.second_step()
    for field, rows in enumerate(ROWS):  # Adam's moments move the touched rows on
        moved = (model.tables[field].weight != before[f"tables.{field}.weight"]).any(dim=1)
        assert moved.tolist() == [count > 0 for count in batch_of(1).counts(field, rows)]


@given(batches())
@settings(deadline=None, max_examples=50)
def test_the_dense_part_ascends_under_one_norm(batch: Batch) -> None:
    model = Toy(dtype=torch.float64)
    gradients, epsilons = ascent(model, Helen(model, rho=RHO, perturb_dense=True), batch)
    g_h = torch.cat([g.flatten() for g in gradients[len(ROWS) :]])
    epsilon_h = torch.cat([epsilon.flatten() for epsilon in epsilons[len(ROWS) :]])
    torch.testing.assert_close(epsilon_h, RHO * g_h / g_h.norm(), rtol=0, atol=1e-12)


def test_a_table_may_be_left_out_of_the_ascent() -> None:
    model, twin = Toy(), Toy()
    helen = Helen(model, rho=RHO, tables={"tables.0": {"ascend": False, "base": "sgd", "lr": 0.25}})
    _, epsilons = ascent(model, helen, batch_of(3))
    assert not epsilons[0].any()
    assert epsilons[1].any()
    helen.zero_grad()
    loss_of(model, batch_of(3)).backward()
    g = model.tables[0].weight.grad.clone()
    helen.second_step()
    torch.testing.assert_close(model.tables[0].weight, twin.tables[0].weight - 0.25 * g)


class Split(nn.Module):
    """The toy's two fields, both on one table: through one module twice, or through two that share it."""

    def __init__(self, modules: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(4)
        self.one = nn.EmbeddingBag(max(ROWS), 3, mode="sum", dtype=torch.float64)
        with torch.no_grad():
            self.one.weight.copy_(torch.randn(self.one.weight.shape, generator=draw))
        self.other = self.one
        if modules == 2:
            self.other = nn.EmbeddingBag(max(ROWS), 3, mode="sum", dtype=torch.float64)
            self.other.weight = self.one.weight

    def forward(self, batch: Batch) -> torch.Tensor:
        both = []
        for table, bags in zip((self.one, self.other), batch.bags, strict=True):
            lengths = torch.tensor([len(bag) for bag in bags])
            both.append(table(torch.tensor([i for b in bags for i in b]).long(), lengths.cumsum(0) - lengths))
        return (both[0] * both[1] + both[0]).sum(1)


@given(st.lists(batches(), min_size=1, max_size=3))
@settings(deadline=None, max_examples=50)
def test_modules_that_share_a_weight_are_one_table(history: list[Batch]) -> None:
    split, whole = Split(2), Split(1)
    one, other = Helen(split, rho=RHO, xi=0.0), Helen(whole, rho=RHO, xi=0.0)
    assert list(one.tables) == ["one"]
    for batch in history:
        one.step(closure(split, batch))
        other.step(closure(whole, batch))
    assert torch.equal(split.one.weight, whole.one.weight)
    expected = [sum(b.counts(0, 9)[k] + b.counts(1, 9)[k] for b in history) for k in range(9)]
    assert one.tables["one"].state["N"].tolist() == expected
    assert one.tables["one"].state["N_star"] == max(expected)


def test_authors_choose_for_themselves() -> None:
    helen = Helen(Toy(), variant="authors", rho=0.05, xi=0.3, perturb_dense=True)
    chosen = {"frequency": "batch", "norm": "table", "base": "dense_adam"}
    for table in helen.tables.values():
        assert chosen.items() <= table.settings.items()
    for key, value in {"frequency": "cumulative", "norm": "row", "base": "adam"}.items():
        with pytest.raises(ValueError, match=f"^{key} '{value}': variant authors has '{chosen[key]}'"):
            Helen(Toy(), variant="authors", **{key: value})


def test_authors_dense_part_steps_by_the_first_gradient_unless_it_ascends() -> None:
    model, twin = Toy(dtype=torch.float64), Toy(dtype=torch.float64)
    dense = {"dense": lambda parameters: torch.optim.SGD(parameters, lr=1.0)}
    Helen(model, variant="authors", rho=RHO, **dense).step(closure(model, batch_of(5)))
    loss_of(twin, batch_of(5)).backward()
    for name in ("hidden", "out"):
        w, before = model.get_submodule(name).weight, twin.get_submodule(name).weight
        torch.testing.assert_close(w, before - before.grad, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"variant": "arxiv"}, "variant 'arxiv'; use paper or authors"),
        ({"rho": -1.0}, "table tables.0: rho -1.0 is not a number from 0 up"),
        ({"xi": math.nan}, "table tables.0: xi nan is not a number from 0 up"),
        ({"norm": "column"}, "table tables.0: no norm 'column'; use row or table"),
        ({"frequency": "epoch"}, "table tables.0: no frequency 'epoch'; use cumulative, batch or dataset"),
        (
            {"frequency": "dataset"},
            "counts: table tables.0 with frequency dataset needs 5 occurrences, one a row",
        ),
        (
            {"base": "lamb"},
            "table tables.0: no base 'lamb'; use sgd, adam, nadam, radam, dense_adam, rowwise_adagrad",
        ),
    ],
)
def test_wrong_settings_are_refused_in_one_line(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Helen(Toy(), **wrong)
    assert str(caught.value) == message
