"""The loop without a model: cut anywhere, it goes on as if it had not been; what was refused counts nowhere."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor
from torchrec import KeyedJaggedTensor

from sparta.models.batch import Batch, Slots
from sparta.models.errors import DataError
from sparta.optim.schedule import EarlyStop, Plateau, Schedule
from sparta.service.feed import unheard
from sparta.service.history import History, read_history
from sparta.service.progress import Progress
from sparta.service.report import Scores
from sparta.service.skips import Skips
from sparta.service.step import Seen
from sparta.service.stop import Stopped
from sparta.service.telemetry.telemetry import Telemetry
from sparta.service.trainer import Outcome, Trainer
from sparta.service.world import World

CPU = torch.device("cpu")
EPOCH = 5
SLOTS = 4


def batch(step: int) -> Batch:
    """As many samples as the step's number allows."""
    weights = (torch.arange(SLOTS) <= step % SLOTS).float()
    sparse = KeyedJaggedTensor(
        keys=["C1"], values=torch.zeros(0), lengths=torch.zeros(SLOTS, dtype=torch.int32)
    )
    return Batch(sparse, torch.zeros(SLOTS, 0), torch.zeros(SLOTS, 1), Slots(0, step, 0, weights))


class Feed:
    """Batches by number."""

    passed_over = 0
    waiting = 0

    def __init__(self, total: int) -> None:
        self.total_steps: int | None = total
        self._total = total

    def stretches(
        self, step: int, idle: Callable[[], None], note: Callable[[str], None] = unheard
    ) -> Iterator[Iterator[Batch]]:
        yield (batch(number) for number in range(step + 1, self._total + 1))

    def epoch(self, step: int) -> int:
        return (step - 1) // EPOCH

    def ends(self, step: int) -> bool:
        return step == self._total

    def rests(self, step: int) -> bool:
        return step % EPOCH == 0

    def state_dict(self, step: int) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """There is none."""


@dataclass
class Model:
    """Weights that tell every step and rate they have seen; steps in `bad` are refused."""

    bad: frozenset[int] = frozenset()
    refused: int = 0
    weight: float = 0.0
    lr: float = 0.0

    tables = None

    @property
    def seen(self) -> Seen:
        return Seen(torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1))

    def __call__(self, of: Batch, meanwhile: Callable[[], None], phase: Callable[[str], None]) -> Tensor:
        phase("second_pass")
        meanwhile()
        step = of.slots.step
        if step in self.bad:
            self.refused += 1
            return torch.tensor(float("nan"))
        loss = float(step % 3 + self.weight % 1)
        self.weight += self.lr * loss
        return torch.tensor(loss, dtype=torch.float64)

    def set_lr(self, factor: float) -> None:
        self.lr = 0.1 * factor

    def score(self) -> float:
        return (self.weight * 7) % 1


class Cut:
    """Stops at the so-manieth question."""

    def __init__(self, at: int | None) -> None:
        self._left = at

    def or_raise(self) -> None:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise Stopped


@dataclass
class Job:
    """A job that can be started again."""

    folder: Path
    total: int
    log_every: int = 2
    evaluate_every: int | None = None
    save_every: int = 4
    patience: int = 99
    bad: frozenset[int] = frozenset()
    bad_steps: int = 0
    saves: list[tuple[dict[str, Any], float]] = field(default_factory=list)
    trainer: Trainer | None = None
    telemetry: Telemetry | None = None

    def run(
        self, saved: tuple[dict[str, Any], float] | None = None, cut: int | None = None
    ) -> Outcome | None:
        """From the start or a save to the end, or to the cut."""
        state, weight = json.loads(json.dumps(saved)) if saved else (None, 0.0)
        model = Model(self.bad, weight=weight)
        stop = Cut(cut)

        def evaluate() -> Scores:
            for _ in range(3):
                stop.or_raise()
            return {"click": {"auc": model.score(), "logloss": 1.0}}

        def save(training: Mapping[str, Any]) -> None:
            self.saves.append((dict(training), model.weight))

        self.telemetry = Telemetry(run="r", rank=0, device=CPU, labels=("click",), rates={"tables": 0.1})
        self.trainer = Trainer(
            sharded=SimpleNamespace(row_collections=[]),  # type: ignore[arg-type]
            step=model,  # type: ignore[arg-type]
            feed=Feed(self.total),
            evaluate=evaluate,
            schedule=Schedule(total_steps=self.total, warmup=3),
            plateau=Plateau(patience=1, factor=0.5),
            watch=EarlyStop(patience=self.patience),
            stop_early=True,
            save=save,
            history=History(
                self.folder / "history.jsonl",
                until=state["step"] if state else 0,
                evaluated=not state or state["settled"],
            ),
            progress=Progress(self.total, out=Console(quiet=True)),
            world=World(0, 1, 1, CPU),
            log_every=self.log_every,
            evaluate_every=self.evaluate_every,
            save_every=self.save_every,
            stop=stop,  # type: ignore[arg-type]
            beat=lambda phase, step: None,
            bad_steps=self.bad_steps,
            skips=Skips(0, lambda line: None),
            telemetry=self.telemetry,
        )
        if state:
            self.trainer.load_state_dict(state)
        try:
            return self.trainer.run()
        except Stopped:
            save(self.trainer.state_dict())
            return None

    def lines(self) -> list[dict[str, Any]]:
        """The history without the speed."""
        lines = read_history(self.folder / "history.jsonl")
        return [{key: value for key, value in line.items() if key != "examples_per_second"} for line in lines]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    total=st.integers(1, 17),
    log_every=st.integers(1, 6),
    evaluate_every=st.none() | st.integers(1, 7),
    save_every=st.integers(1, 6),
    patience=st.integers(0, 4),
    bad=st.frozensets(st.integers(1, 17), max_size=4),
    cuts=st.lists(st.integers(0, 12), max_size=4),
    data=st.data(),
)
def test_a_run_that_is_stopped_or_killed_anywhere_goes_on_as_if_it_had_not_been(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], data: st.DataObject, **keys: Any
) -> None:
    whole = Job(tmp_path_factory.mktemp("whole"), bad_steps=17, **keys)
    expected = whole.run()
    assert expected is not None
    parts = Job(tmp_path_factory.mktemp("parts"), bad_steps=17, **keys)
    outcome, saved = None, None
    for cut in [*cuts, None]:
        outcome = parts.run(saved, cut)
        if outcome is not None:
            break
        # A kill loses the last of the saves, and what was done since; a stop does not.
        back = data.draw(st.integers(0, min(2, len(parts.saves) - 1)), "lost")
        del parts.saves[len(parts.saves) - back :]  # for good: the newest is what a run goes on from
        saved = parts.saves[-1]
    assert outcome is not None
    assert parts.lines() == whole.lines()
    assert parts.saves[-1][1] == whole.saves[-1][1]  # the weights
    for name in ("steps", "examples", "best_step", "stopped_early", "refused"):
        assert getattr(outcome, name) == getattr(expected, name), name


@pytest.mark.parametrize("bad", [{3}, {4}, {1, 2}, {3, 4}])
def test_a_refused_step_counts_in_no_mean_and_moves_nothing(tmp_path: Path, bad: set[int]) -> None:
    """The lines are those of the steps that were taken."""
    job = Job(tmp_path, 6, bad=frozenset(bad), bad_steps=2)
    outcome = job.run()
    assert outcome is not None
    assert (outcome.refused, outcome.steps) == (len(bad), 6)
    model, schedule = Model(), Schedule(total_steps=6, warmup=3)
    losses: dict[int, float] = {}
    for step in range(1, 7):
        if step not in bad:
            model.set_lr(schedule.scale(step))
            losses[step] = float(model(batch(step), lambda: None, lambda phase: None))
    steps = {line["step"]: line for line in job.lines() if "loss" in line}
    for last in (2, 4, 5, 6):  # a line every second step, and at the evaluation
        first = {2: 1, 4: 3, 5: 5, 6: 6}[last]
        taken = [losses[step] for step in range(first, last + 1) if step in losses]
        assert (last in steps) == bool(taken)
        if taken:
            assert steps[last]["loss"] == pytest.approx(sum(taken) / len(taken))
            samples = sum(1 + step % SLOTS for step in losses if step <= last)
            assert steps[last]["examples"] == samples
    assert job.saves[-1][1] == pytest.approx(model.weight)
    told = {
        name: counted(job, name)
        for name in ("examples", "steps", "nonfinite_steps", "skipped_batches", "step")
    }
    assert told == {
        "examples": outcome.examples,
        "steps": 6,
        "nonfinite_steps": len(bad),
        "skipped_batches": len(bad),
        "step": 6,
    }
    assert counted(job, "learning_rate", part="tables") == pytest.approx(0.1 * schedule.scale(6))


def counted(job: Job, name: str, **labels: str) -> float | None:
    """What the trainer's instruments say, as they are scraped."""
    assert job.telemetry is not None
    wanted = {"run": "r", "rank": "0", **labels}
    for metric in job.telemetry.registry.collect():
        for sample in metric.samples:
            if sample.name in (f"sparta_{name}", f"sparta_{name}_total") and sample.labels == wanted:
                return float(sample.value)
    return None


def test_one_more_than_is_put_up_with_ends_the_run(tmp_path: Path) -> None:
    job = Job(tmp_path, 9, bad=frozenset({2, 3, 7}), bad_steps=2)
    with pytest.raises(DataError, match=r"^step 7: the loss or a gradient is not finite") as error:
        job.run()
    assert "let more than 2 pass with tolerate.bad_steps" in str(error.value)
    assert "\n" not in str(error.value)


def test_what_was_refused_before_a_stop_counts_towards_the_limit(tmp_path: Path) -> None:
    job = Job(tmp_path, 9, bad=frozenset({2, 7}), bad_steps=1)
    assert job.run(cut=3) is None
    with pytest.raises(DataError, match="step 7: "):
        job.run(job.saves[-1])


def test_an_evaluation_that_was_stopped_and_then_killed_is_noted_once(tmp_path: Path) -> None:
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole, parts = Job(tmp_path / "whole", 8), Job(tmp_path / "parts", 8)
    whole.run()
    assert parts.run(cut=EPOCH) is None  # in the evaluation after the first epoch
    saved = parts.saves[-1]
    assert (saved[0]["step"], saved[0]["settled"]) == (EPOCH, False)
    assert parts.run(saved, cut=4) is None  # beyond it, but without a checkpoint of it
    parts.run(saved)
    assert parts.lines() == whole.lines()


def test_a_run_without_a_step_left_is_done(tmp_path: Path) -> None:
    job = Job(tmp_path, 6)
    first = job.run()
    lines = job.lines()
    again = job.run(job.saves[-1])
    assert first is not None
    assert again is not None
    assert (again.steps, again.examples, again.best_step) == (first.steps, first.examples, first.best_step)
    assert job.lines() == lines


def test_it_saves_every_so_many_steps_at_each_best_and_at_the_end(tmp_path: Path) -> None:
    job = Job(tmp_path, 13, save_every=4)
    job.run()
    saved = [state["step"] for state, _ in job.saves]
    best, gains = -1.0, set()
    for line in job.lines():
        if line.get("auc", -1.0) > best:
            best = line["auc"]
            gains.add(line["step"])
    assert saved == sorted({4, 8, 12, 13} | gains)
    assert all(state["settled"] for state, _ in job.saves)
