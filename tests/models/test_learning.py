"""The learning law: every model finds the pairwise effects that `sparta synth` plants, and only from true ids.

The generator's parameters are the demo's (the rows are fewer), and the columns are encoded as its prepare.yaml says.
The bar is 95% of the AUC gain (AUC - 0.5) of a factorisation machine, the planted model's own family; its
first-order part alone is the logistic regression. A training has a fixed length, the same for true and for
shuffled ids, and reads the test rows once, at its end.

What was tuned where: the generator's parameters on seeds 1 to 3 and 11, the recipes on seeds 1 to 3, of all of
which the test rows were read too. Seeds 31 to 33 and 41 had no part in that; on them the models reached 0.979 to
1.026 of the machine's gain, DLRM always the least (up to 0.989), the logistic regression 0.81 to 0.82, models with
shuffled ids (on 41 alone) 0.45 to 0.49, and the machine itself 0.94 of the attainable gain, which leaves room above 1.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparta.models import zoo
from sparta.models.embedding import Inputs
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
from tests.pool import Pool

TRAIN_ROWS, TEST_ROWS, SEED = 320_000, 40_000, 41
"""A seed on which nothing was tuned."""
EPOCHS = 2
BAR = 0.95
FACTORS = 4
"""Of the factorisation machine; more than planted train more easily."""

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Recipe:
    """How one model is trained; the rest is the same for all."""

    args: dict[str, Any] = field(default_factory=dict)
    dim: int = 8
    table_lr: float = 0.004
    lr: float = 0.003
    std: float = 0.1
    """Of the initial table rows; from 1e-4 the products of two of them take long to grow."""


RECIPES = {
    "dnn": Recipe(),
    "wide_deep": Recipe(dim=4),
    "pnn": Recipe(),
    "deepfm": Recipe(dim=4),
    "dcn": Recipe(dim=4),
    "dcn_v2": Recipe(dim=4),
    # Dense columns reach its answer only through the bottom MLP, first-order effects only through dot products.
    "dlrm": Recipe(args={"bottom": [128, 64], "dropout": 0.2}, table_lr=0.003, lr=0.006),
}


def machine_gain(task: Task, factors: int) -> float:
    torch.manual_seed(0)
    machine = FactorisationMachine(task, factors)

    def logit(rows: Rows, step: int) -> Tensor:
        return machine(rows)  # type: ignore[no-any-return]

    fit(logit, [(machine.parameters(), 0.006)], task.train, epochs=EPOCHS)
    return score(logit, task.test) - 0.5


def model_gain(name: str, task: Task) -> float:
    recipe = RECIPES[name]
    torch.manual_seed(0)
    model = zoo.build(name, Inputs(task.schema, recipe.dim), {"hidden": [64, 32], **recipe.args})
    model.embeddings.tables = Tables(model.embeddings.specs, recipe.std)
    tables = list(model.embeddings.parameters())
    rest = [p for key, p in model.named_parameters() if not key.startswith("embeddings.")]

    def logit(rows: Rows, step: int) -> Tensor:
        model.train(step > 0)
        return model(to_batch(rows, task.schema, step))[:, 0]  # type: ignore[no-any-return]

    fit(logit, [(tables, recipe.table_lr), (rest, recipe.lr)], task.train, epochs=EPOCHS)
    return score(logit, task.test) - 0.5


SHUFFLED = ", shuffled"
JOBS = ("fm", "lr", "attainable", *zoo.ZOO, *(name + SHUFFLED for name in zoo.ZOO))


def some_gains(rank: int, ranks: int, folder: Path, seed: int) -> dict[str, float]:
    """This process's part of JOBS: whoever makes a job's file in `folder` first does the job."""
    task = make_task(TRAIN_ROWS, TEST_ROWS, seed)
    noise = replace(task, train=shuffled(task.train, 1), test=shuffled(task.test, 2))
    gains = {}
    for number, job in enumerate(JOBS):
        try:
            (folder / str(number)).touch(exist_ok=False)
        except FileExistsError:
            continue
        if job == "attainable":
            gains[job] = score(lambda rows, step: rows.probability, task.test) - 0.5
        elif job in ("fm", "lr"):
            gains[job] = machine_gain(task, FACTORS if job == "fm" else 0)
        else:
            gains[job] = model_gain(job.removesuffix(SHUFFLED), noise if job.endswith(SHUFFLED) else task)
    return gains


@pytest.fixture(scope="module")
def gains(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """AUC - 0.5 of every job. Two processes of one thread each: the steps are too small for more threads."""
    parts = pool.run(2, some_gains, tmp_path_factory.mktemp("jobs"), SEED, timeout_seconds=900)
    return parts[0] | parts[1]


def test_the_machine_reaches_nine_tenths_of_the_attainable_gain(gains: dict[str, float]) -> None:
    assert gains["fm"] >= 0.9 * gains["attainable"]


def test_logistic_regression_misses_the_bar(gains: dict[str, float]) -> None:
    assert gains["lr"] < 0.85 * gains["fm"]


@pytest.mark.parametrize("name", zoo.ZOO)
def test_every_model_reaches_the_bar(name: str, gains: dict[str, float]) -> None:
    assert gains[name] >= BAR * gains["fm"]


@pytest.mark.parametrize("name", zoo.ZOO)
def test_no_model_reaches_the_bar_with_shuffled_ids(name: str, gains: dict[str, float]) -> None:
    assert gains[name + SHUFFLED] < BAR * gains["fm"]
