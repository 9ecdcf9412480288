"""The training loop: steps, learning rates, log lines, evaluations, early stopping, best weights."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from sparta.models.batch import Batch
from sparta.models.errors import DataError
from sparta.optim.schedule import EarlyStop, Plateau, Schedule
from sparta.service.checkpoint import Checkpoints
from sparta.service.data.loader import Loader
from sparta.service.history import History
from sparta.service.prefetch import Prefetcher
from sparta.service.progress import Progress
from sparta.service.report import Scores
from sparta.service.step import Step
from sparta.service.world import World
from sparta.sharding.collectives import total
from sparta.sharding.shard import Sharded


@dataclass(frozen=True)
class Outcome:
    """What training came to."""

    steps: int
    examples: int
    seconds: float
    """Wall time spent in training steps, evaluations and checkpoints left out."""
    best_step: int | None
    stopped_early: bool


def mean_metric(scores: Scores, metric: str) -> float:
    """The mean of a metric over the tasks; nan when a task has none (one class only)."""
    values = [task.get(metric) for task in scores.values()]
    return sum(math.nan if value is None else value for value in values) / len(values)


class Trainer:
    """Runs the epochs of one job.

    Args:
        step: trains on one batch.
        evaluate: metrics of the valid split, the same on all ranks; None when there is no such split.
        total_steps: where to stop, at most.
        evaluate_every: steps between evaluations; None for once an epoch.
        watch: decides which evaluation is the best and when to stop.
        stop_early: whether `watch` may end the run.
    """

    def __init__(
        self,
        *,
        sharded: Sharded,
        step: Step,
        loader: Loader,
        evaluate: Callable[[], Scores] | None,
        schedule: Schedule,
        plateau: Plateau | None,
        watch: EarlyStop,
        stop_early: bool,
        checkpoints: Checkpoints,
        history: History | None,
        progress: Progress,
        world: World,
        total_steps: int,
        log_every: int,
        evaluate_every: int | None,
    ) -> None:
        self._sharded = sharded
        self._step = step
        self._loader = loader
        self._evaluate = evaluate
        self._schedule = schedule
        self._plateau = plateau
        self._watch = watch
        self._stop_early = stop_early
        self._checkpoints = checkpoints
        self._history = history
        self._progress = progress
        self._world = world
        self._total_steps = total_steps
        self._log_every = log_every
        self._evaluate_every = evaluate_every or loader.steps
        self._meter = Meter(world.device)

    def run(self) -> Outcome:
        """Train to the last step or until validation stops improving; leave the last weights on disk."""
        steps, stop = 0, False
        batches = Prefetcher(self._batches(), self._world.device, self._sharded.row_collections)
        for batch in batches:
            steps = batch.slots.step
            self._step.set_lr(self._lr_factor(steps))
            self._meter.add(self._step(batch, batches.ahead), batch)
            if self._step.refused:
                raise DataError(
                    f"step {steps}: the loss or a gradient is not finite, so the weights are those before it; lower "
                    "optim.tables.lr and optim.dense.lr, or look for wild values in the dense columns"
                )
            due = self._evaluation_due(steps)
            if due or steps % self._log_every == 0:
                self._log(steps)
            if due and self._evaluate:
                with self._meter.paused():
                    stop = self._validate(steps, self._evaluate()) and self._stop_early
            if stop:
                break
        with self._meter.paused():
            self._checkpoints.save(self._sharded, steps, best=False)
        return Outcome(steps, self._meter.examples, self._meter.seconds, self._watch.best_step, stop)

    def _batches(self) -> Iterator[Batch]:
        """The batches of all epochs, up to the last step."""
        for epoch in range(math.ceil(self._total_steps / self._loader.steps)):
            for batch in self._loader.epoch(epoch):
                yield batch
                if batch.slots.step == self._total_steps:
                    return

    def _lr_factor(self, step: int) -> float:
        return self._schedule.scale(step) * (self._plateau.scale if self._plateau else 1.0)

    def _evaluation_due(self, step: int) -> bool:
        return step % self._evaluate_every == 0 or step == self._total_steps

    def _epoch(self, step: int) -> int:
        return (step - 1) // self._loader.steps

    def _log(self, step: int) -> None:
        """One line of history: the mean loss of the steps since the line before."""
        loss, rate = self._meter.read()
        self._progress.update(step, epoch=self._epoch(step), loss=loss, examples_per_second=rate)
        if self._history:
            self._history.step(
                step, self._epoch(step), loss, self._meter.examples, examples_per_second=round(rate, 1)
            )
        if not math.isfinite(loss):
            raise DataError(
                f"step {step}: the loss is {loss}; lower optim.tables.lr and optim.dense.lr, or look for wild values "
                "in the dense columns"
            )

    def _validate(self, step: int, scores: Scores) -> bool:
        """Note an evaluation, keep the weights if they are the best; whether patience is at its end."""
        if self._history:
            self._history.evaluation(step, self._epoch(step), "valid", scores)
        self._progress.validated(scores)
        if self._plateau:
            self._plateau.observe(mean_metric(scores, self._plateau.metric))
        exhausted = self._watch.observe(mean_metric(scores, self._watch.metric), step)
        if self._watch.best_step == step:
            self._checkpoints.save(self._sharded, step, best=True)
        return exhausted


class Meter:
    """Loss, examples and time of the training steps; time in `paused` does not count."""

    def __init__(self, device: torch.device) -> None:
        self.examples = 0
        """Samples trained on so far, over all ranks."""
        self.seconds = 0.0
        """Wall time in training steps so far, up to the last `read`."""
        # The loss stays on the device until it is read: a step must not wait for the host.
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._real = torch.zeros((), dtype=torch.int64, device=device)
        self._steps = 0
        self._mark = time.perf_counter()

    def add(self, loss: Tensor, batch: Batch) -> None:
        self._loss += loss
        self._real += (batch.slots.weights > 0).sum()
        self._steps += 1

    def read(self) -> tuple[float, float]:
        """(mean loss, examples a second) since the last call, over all ranks; collective."""
        sums = torch.stack([self._loss, self._real.double()])
        loss, examples = total(sums).tolist()
        now = time.perf_counter()
        elapsed, steps = now - self._mark, self._steps
        self.examples += round(examples)
        self.seconds += elapsed
        self._loss.zero_()
        self._real.zero_()
        self._steps = 0
        self._mark = now
        return loss / steps, examples / elapsed

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Evaluations and checkpoints are not training time."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._mark += time.perf_counter() - began
