"""Laws of the two-pass step, whatever the rule: what is reported, restored, refused, saved."""

from collections.abc import Callable
from functools import partial
from io import BytesIO
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparta.optim.helen import Helen
from sparta.optim.passes import Passes
from sparta.optim.sam import ASAM, SAM
from sparta.optim.two_pass import TwoPass
from tests.optim.toys import Batch, Toy, assert_same_bits, batch_of, batches, bits, closure, loss_of

Make = Callable[..., TwoPass]
RULES: dict[str, Make] = {
    "helen": partial(Helen, rho=0.1),
    "helen-dense": partial(Helen, rho=0.1, perturb_dense=True, norm="table"),
    "authors": partial(Helen, rho=0.1, variant="authors"),
    "sam": partial(SAM, rho=0.1, base="rowwise_adagrad"),
    "asam": partial(ASAM, rho=0.1, base="sgd"),
}
every_rule = pytest.mark.parametrize("make", RULES.values(), ids=RULES)


def noisy_toy() -> Toy:
    return Toy(batch_norm=True, dropout=0.3)


@every_rule
def test_step_is_ascend_restore_step_by_hand(make: Make) -> None:
    model, twin = noisy_toy(), noisy_toy()
    whole, by_hand = make(model), make(twin)
    for seed in range(3):
        torch.manual_seed(seed)
        loss = whole.step(closure(model, batch_of(seed)))
        torch.manual_seed(seed)
        with Passes(twin) as passes:
            by_hand.zero_grad()
            with passes.first():
                expected = closure(twin, batch_of(seed))()
            by_hand.first_step(zero_grad=True)
            with passes.second():
                uphill = closure(twin, batch_of(seed))()
            by_hand.restore()
            by_hand.second_step(zero_grad=True)
        assert torch.equal(loss, expected)  # the first pass's, not the second's
        assert not torch.equal(loss, uphill)
        assert all(p.grad is None for p in twin.parameters())
    assert_same_bits(bits(model, whole), bits(twin, by_hand))


@pytest.mark.parametrize("name", ["helen", "helen-dense", "sam", "asam"])
@given(batches(), batches())
@settings(deadline=None, max_examples=20)
def test_untouched_rows_keep_their_bits_and_the_ascent_goes_uphill(
    name: str, first: Batch, second: Batch
) -> None:
    model = Toy(dtype=torch.float64)
    optimizer = RULES[name](model)
    optimizer.step(closure(model, first))
    before = bits(model, optimizer)
    at_w = loss_of(model, second)
    uphill: list[Tensor] = []

    def noted() -> Tensor:
        uphill.append(closure(model, second)())
        return uphill[-1]

    torch.testing.assert_close(optimizer.step(noted), at_w)
    for field, table in enumerate(optimizer.tables.values()):
        untouched = torch.tensor(second.counts(field, len(table.weight))) == 0
        for key in [f"model.{table.name}.weight", *(f"{table.name}.{key}" for key in table.state)]:
            value = bits(model, optimizer)[key]
            if value.ndim:
                assert torch.equal(value[untouched], before[key][untouched]), key
    assert len(uphill) == 2


@every_rule
def test_the_ascent_goes_uphill(make: Make) -> None:
    model = Toy(dtype=torch.float64)
    optimizer = make(model)
    losses: list[Tensor] = []

    def noted() -> Tensor:
        losses.append(closure(model, batch_of(2))())
        return losses[-1]

    optimizer.step(noted)
    assert losses[1] > losses[0]


def poisoned(model: Toy, batch: Batch, at: int, what: str) -> Callable[[], Tensor]:
    """A closure whose run number `at` has a non-finite loss, or gradient of a table or of the rest."""
    runs = []

    def run() -> Tensor:
        runs.append(None)
        loss = closure(model, batch)()
        if len(runs) == at:
            of = {"table": model.tables[1].weight, "dense": model.out.bias}
            if what == "loss":
                return loss.detach() * float("nan")
            if of[what].grad is not None:
                of[what].grad.view(-1)[-1] = float("inf")
            else:  # the first pass asks for no dense gradient
                return loss.detach() * float("inf")
        return loss

    return run


@every_rule
@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("what", ["loss", "table", "dense"])
def test_a_step_that_is_not_finite_leaves_everything_as_it_was(make: Make, at: int, what: str) -> None:
    model = noisy_toy()
    optimizer = make(model)
    optimizer.step(closure(model, batch_of(1)))
    before = bits(model, optimizer)
    # The last row of the table must be touched for its gradient to be looked at.
    batch = Batch([[[1], [2, 2]], [[8], [0]]], [1.0, 0.0])
    optimizer.step(poisoned(model, batch, at, what))
    assert_same_bits(bits(model, optimizer), before)
    assert (optimizer.t, optimizer.refused) == (1, 1)
    optimizer.step(closure(model, batch))
    assert optimizer.t == 2
    assert not torch.equal(model.tables[1].weight, before["model.tables.1.weight"])


def test_by_hand_a_gradient_that_is_not_finite_neither_ascends_nor_steps() -> None:
    model = Toy()
    helen = Helen(model)
    before = bits(model, helen)
    loss_of(model, batch_of(1)).backward()
    model.tables[0].weight.grad[:] = float("nan")
    helen.ascend()
    assert_same_bits(bits(model, helen), before)
    helen.zero_grad()
    loss_of(model, batch_of(1)).backward()
    helen.second_step()
    assert_same_bits(bits(model, helen), before)
    assert helen.refused == 1


def test_a_closure_that_raises_leaves_everything_as_it_was() -> None:
    model = noisy_toy()
    helen = Helen(model, perturb_dense=True)
    before = bits(model, helen)
    runs: list[None] = []

    def run() -> Tensor:
        runs.append(None)
        if len(runs) == 2:
            raise KeyError
        return closure(model, batch_of(1))()

    with pytest.raises(KeyError):
        helen.step(run)
    assert_same_bits(bits(model, helen), before)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("dense", [False, True])
def test_the_first_pass_finds_dense_gradients_only_if_they_ascend(dense: bool) -> None:
    model = Toy()
    found: list[set[str]] = []

    def run() -> Tensor:
        loss = closure(model, batch_of(1))()
        found.append({name for name, p in model.named_parameters() if p.grad is not None})
        return loss

    Helen(model, perturb_dense=dense).step(run)
    names = {name for name, _ in model.named_parameters()}
    tables = {"tables.0.weight", "tables.1.weight"}
    assert found == [names if dense else tables, names]


@given(st.lists(batches(), min_size=5, max_size=5), st.integers(2, 3))
@settings(deadline=None, max_examples=20)
def test_ascend_every_kth_step_and_count_in_all(history: list[Batch], k: int) -> None:
    model, twin = Toy(), Toy()
    helen, by_hand = Helen(model, rho=0.1, ascend_every=k), Helen(twin, rho=0.1)
    for step, batch in enumerate(history, start=1):
        helen.step(closure(model, batch))
        by_hand.zero_grad()
        closure(twin, batch)()
        if step % k == 0:
            by_hand.first_step(zero_grad=True)
            closure(twin, batch)()
        by_hand.second_step()
    assert_same_bits(bits(model, helen), bits(twin, by_hand))


def test_a_step_that_would_not_ascend_or_not_move_says_so() -> None:
    model = Toy()
    helen, batch = Helen(model, rho=0.1), batch_of(1)
    before = bits(model, helen)
    closure(model, batch)()
    with pytest.raises(RuntimeError, match="nobody went uphill"):
        helen.step()
    with pytest.raises(RuntimeError, match="the closure found no gradient"):
        helen.step(lambda: torch.zeros(()))
    assert_same_bits(bits(model, helen), before)
    assert helen.t == 0
    helen.zero_grad()
    closure(model, batch)()
    helen.first_step(zero_grad=True)
    closure(model, batch)()
    helen.step()
    assert helen.t == 1


@every_rule
def test_a_saved_state_goes_on_bit_for_bit(make: Make) -> None:
    model, twin = noisy_toy(), noisy_toy()
    optimizer, other = make(model), make(twin, lr=0.5)
    for seed in range(3):
        optimizer.step(closure(model, batch_of(seed)))
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[-1]["lr"] = 0.02
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    buffer = BytesIO()
    torch.save(saved, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)
    twin.load_state_dict(loaded["model"])
    other.load_state_dict(loaded["optimizer"])
    for seed in range(3, 5):
        torch.manual_seed(seed)
        optimizer.step(closure(model, batch_of(seed)))
        torch.manual_seed(seed)
        other.step(closure(twin, batch_of(seed)))
    assert_same_bits(bits(model, optimizer), bits(twin, other))
    assert [group["lr"] for group in other.param_groups] == [group["lr"] for group in optimizer.param_groups]


@pytest.mark.parametrize(
    "other, message",
    [
        (Helen(Toy(), base="sgd"), r"table tables\.0: 'exp_avg' is in only one of the saved state and .*"),
        (
            Helen(Toy().tables[0]),
            r"the state is of tables \['weight'\], the model has \['tables.0', 'tables.1'\]",
        ),
    ],
)
def test_a_state_that_does_not_fit_is_refused_whole(other: Helen, message: str) -> None:
    model = Toy()
    helen = Helen(model)
    helen.step(closure(model, batch_of(0)))
    before = bits(model, helen)
    with pytest.raises(ValueError, match=f"^{message}$"):
        helen.load_state_dict(other.state_dict())
    wrong = helen.state_dict()
    state = wrong["tables"]["tables.0"]
    wrong["tables"]["tables.0"] = state | {"exp_avg": state["exp_avg"][:2]}
    message = r"^table tables\.0: exp_avg was saved with shape \(2, 3\), here it has \(5, 3\)$"
    with pytest.raises(ValueError, match=message):
        helen.load_state_dict(wrong)
    assert_same_bits(bits(model, helen), before)


def test_schedulers_reach_tables_and_dense_parameters() -> None:
    model = Toy()
    helen = Helen(model, lr=0.1, dense=partial(torch.optim.SGD, lr=0.3), tables={"tables.1": {"lr": 0.2}})
    schedule = torch.optim.lr_scheduler.ExponentialLR(helen, gamma=0.5)
    helen.step(closure(model, batch_of(0)))
    schedule.step()
    assert [group["lr"] for group in helen.param_groups] == [0.05, 0.1, 0.15]
    before = model.out.bias.detach().clone()
    closure_of_next = closure(model, batch_of(1))
    helen.step(closure_of_next)
    torch.testing.assert_close(model.out.bias, before - 0.15 * model.out.bias.grad)


def refusals() -> dict[str, Callable[[], Any]]:
    def twice() -> None:
        model = Toy()
        helen = Helen(model)
        loss_of(model, batch_of(0)).backward()
        helen.ascend()
        helen.ascend()

    return {
        "add_param_group: the tables are those of the model": lambda: Helen(Toy()).add_param_group(
            {"params": []}
        ),
        "tables: no table 'tables.2' in the model; there are tables.0, tables.1": lambda: Helen(
            Toy(), tables={"tables.2": {"lr": 1.0}}
        ),
        "ascend_every 0 is below 1; 1 ascends in every step": lambda: SAM(Toy(), ascend_every=0),
        "eta -1 is not a number from 0 up": lambda: ASAM(Toy(), eta=-1),
        "ascend: the weights are uphill already; restore or step first": twice,
    }


@pytest.mark.parametrize("message", refusals())
def test_what_makes_no_sense_is_refused_in_one_line(message: str) -> None:
    with pytest.raises((ValueError, RuntimeError)) as caught:
        refusals()[message]()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
