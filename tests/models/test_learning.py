"""The learning law: every model finds the pairwise effects that `sparta synth` plants, and only from true ids.

Generator and number of rows are the demo's. The bar is 95% of the AUC gain (AUC - 0.5) of a factorisation
machine, the planted model's own family. The generator's parameters and the models' settings were tuned on rows
of seeds 1 to 3 (of seed 1 also the test split), and changed once more after DLRM missed the bar on seed 11; so
the law is tested on a seed that had no part in it. The tables start from N(0, 0.1) rather than 1e-4, since
products of two small numbers take long to grow.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from sparta.models import zoo
from sparta.models.embedding import Inputs
from sparta.models.field import Fields
from tests.models.planted import (
    FactorisationMachine,
    Rows,
    Tables,
    Task,
    fit,
    make_task,
    score,
    shuffled,
    to_batch,
)

ROWS = {"train_rows": 320_000, "test_rows": 40_000, "seed": 12}
"""As many as in the demo, of a seed on which nothing was tuned."""
BAR = 0.95

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Recipe:
    """How one model is trained; the rest is the same for all."""

    hidden: tuple[int, ...] = (64, 32)
    dim: int = 8
    table_lr: float = 0.004
    lr: float = 0.003
    std: float = 0.1


RECIPES = {
    "dnn": Recipe(),
    "wide_deep": Recipe(),
    "pnn": Recipe(),
    "deepfm": Recipe(dim=4, lr=0.002, std=0.03),
    "dcn": Recipe(),
    "dcn_v2": Recipe(lr=0.002),
    "dlrm": Recipe(hidden=(256, 64), dim=16, table_lr=0.003, lr=0.004),
}


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    """One thread: the steps are too small for more, which only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def task() -> Task:
    return make_task(**ROWS)


@pytest.fixture(scope="module")
def noise(task: Task) -> Task:
    """The task with its categorical columns shuffled."""
    return replace(task, train=shuffled(task.train, 1), test=shuffled(task.test, 2))


def machine_gain(task: Task, factors: int) -> float:
    torch.manual_seed(0)
    machine = FactorisationMachine(task, factors)

    def logit(rows: Rows, step: int) -> Tensor:
        return machine(rows)  # type: ignore[no-any-return]

    fit(logit, [(machine.parameters(), 0.006)], task.train, epochs=2)
    return score(logit, task.test) - 0.5


@pytest.fixture(scope="module")
def reference(task: Task) -> float:
    """The gain of the factorisation machine; more factors than planted train more easily."""
    return machine_gain(task, factors=4)


def model_gain(name: str, task: Task) -> float:
    recipe = RECIPES[name]
    torch.manual_seed(0)
    model = zoo.build(name, Inputs(task.schema, recipe.dim), {"hidden": list(recipe.hidden)})
    model.embeddings.tables = Tables(model.embeddings.specs, recipe.std)
    if isinstance(fields := getattr(model, "fields", None), Fields):
        # Their Xavier weights are large beside the tables', and so would the products of all dense pairs be.
        nn.init.normal_(fields.vectors_DE, std=0.05)
    tables = list(model.embeddings.parameters())
    rest = [p for key, p in model.named_parameters() if not key.startswith("embeddings.")]

    def logit(rows: Rows, step: int) -> Tensor:
        model.train(step > 0)
        return model(to_batch(rows, task.schema, step))[:, 0]  # type: ignore[no-any-return]

    fit(logit, [(tables, recipe.table_lr), (rest, recipe.lr)], task.train, epochs=2)
    return score(logit, task.test) - 0.5


def test_the_machine_reaches_nine_tenths_of_the_attainable_gain(task: Task, reference: float) -> None:
    attainable = score(lambda rows, step: rows.probability, task.test) - 0.5
    assert reference >= 0.9 * attainable


def test_logistic_regression_misses_the_bar(task: Task, reference: float) -> None:
    assert machine_gain(task, factors=0) < 0.85 * reference


@pytest.mark.parametrize("name", zoo.ZOO)
def test_every_model_reaches_the_bar(name: str, task: Task, reference: float) -> None:
    assert model_gain(name, task) >= BAR * reference


@pytest.mark.parametrize("name", zoo.ZOO)
def test_no_model_reaches_the_bar_with_shuffled_ids(name: str, noise: Task, reference: float) -> None:
    assert model_gain(name, noise) < BAR * reference
