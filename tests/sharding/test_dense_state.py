"""Laws of the dense optimizer's state: taken at any step, put into any optimizer of the kind, nothing shows."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparta.models.errors import ConfigError, DataError
from sparta.service.build import DENSE_OPTIMIZERS
from sparta.sharding.dense_state import DenseState

OPTIMIZERS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in DENSE_OPTIMIZERS),
    ("adam", {"amsgrad": True, "weight_decay": 0.1}),
    ("sgd", {"momentum": 0.9, "dampening": 0.5}),
    ("adagrad", {"initial_accumulator_value": 0.3}),
]
NAMES = ("first.weight", "first.bias", "unused")


def made(name: str, args: dict[str, Any]) -> tuple[dict[str, nn.Parameter], torch.optim.Optimizer]:
    torch.manual_seed(0)
    parameters = {
        key: nn.Parameter(torch.randn(*shape)) for key, shape in zip(NAMES, ((3, 2), (3,), (2,)), strict=True)
    }
    return parameters, DENSE_OPTIMIZERS[name](parameters.values(), lr=0.1, **args)  # type: ignore[call-arg]


def train(parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Steps with a gradient of their number for all but the last parameter."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for name in NAMES[:2]:
            parameters[name].grad = torch.randn(parameters[name].shape, generator=generator)
        optimizer.step()


def cloned(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("taken", [0, 1, 3])
@pytest.mark.parametrize("name, args", OPTIMIZERS)
def test_an_optimizer_goes_on_from_a_state_to_the_bit(
    name: str, args: dict[str, Any], taken: int, before: int
) -> None:
    straight, optimizer = made(name, args)
    train(straight, optimizer, range(taken))
    weights = cloned(dict(straight))
    state = cloned(DenseState(optimizer, straight).state_dict())
    train(straight, optimizer, range(taken, 5))

    resumed, other = made(name, args)
    loaded = DenseState(other, resumed)
    train(resumed, other, range(10, 10 + before))
    loaded.load_state_dict(state)
    with torch.no_grad():
        for key, parameter in resumed.items():
            parameter.copy_(weights[key])
    assert same(loaded.state_dict(), state)
    train(resumed, other, range(taken, 5))
    assert same(dict(resumed), dict(straight))
    assert same(loaded.state_dict(), DenseState(optimizer, straight).state_dict())


@pytest.mark.parametrize("name, args", OPTIMIZERS)
def test_names_and_shapes_are_there_before_the_first_step(name: str, args: dict[str, Any]) -> None:
    parameters, optimizer = made(name, args)
    weights = cloned(dict(parameters))
    state = DenseState(optimizer, parameters)
    shapes = {key: tensor.shape for key, tensor in state.state_dict().items()}
    assert same(dict(parameters), weights)
    assert all(parameter.grad is None for parameter in parameters.values())
    train(parameters, optimizer, range(2))
    assert {key: tensor.shape for key, tensor in state.state_dict().items()} == shapes
    kinds = {kind for kept in optimizer.state.values() for kind in kept} | {"begun"}
    assert shapes.keys() == {f"dense_optim/{key}/{kind}" for key in NAMES for kind in kinds}


@pytest.mark.parametrize("name, args", OPTIMIZERS)
def test_a_live_state_shares_the_optimizers_memory(name: str, args: dict[str, Any]) -> None:
    parameters, optimizer = made(name, args)
    state = DenseState(optimizer, parameters)
    train(parameters, optimizer, range(2))
    before = state.state_dict()
    train(parameters, optimizer, range(2, 3))
    assert same(before, state.state_dict())


def test_a_state_that_is_refused_leaves_all_as_it_was() -> None:
    parameters, optimizer = made("adam", {})
    state = DenseState(optimizer, parameters)
    train(parameters, optimizer, range(2))
    mine = cloned(state.state_dict())
    other = {name: torch.ones_like(tensor) for name, tensor in mine.items()}
    last = "dense_optim/unused/exp_avg"
    for bad in (
        {name: tensor for name, tensor in other.items() if name != last},
        {**other, "dense_optim/unused/sum": torch.ones(2)},
        {**other, last: torch.ones(3)},
    ):
        with pytest.raises(DataError, match="dense_optim/unused"):
            state.load_state_dict(bad)
        assert same(state.state_dict(), mine)


class Counting(torch.optim.SGD):
    """Keeps a Python number, as old optimizers do."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["step"] = 1


def test_an_optimizer_that_keeps_no_tensors_is_refused() -> None:
    parameters, _ = made("sgd", {})
    with pytest.raises(ConfigError, match="Counting keeps step 1"):
        DenseState(Counting(parameters.values(), lr=0.1), parameters)
