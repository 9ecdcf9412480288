"""The training loop: steps, learning rates, log lines, evaluations, early stopping, checkpoints."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sparta.models.batch import Batch
from sparta.models.errors import DivergedError
from sparta.optim.schedule import EarlyStop, Plateau, Schedule
from sparta.service.feed import Feed
from sparta.service.history import History
from sparta.service.meter import Meter
from sparta.service.prefetch import Prefetcher
from sparta.service.progress import Progress
from sparta.service.report import Scores
from sparta.service.skips import Skips
from sparta.service.step import Step
from sparta.service.stop import Stop
from sparta.service.telemetry.telemetry import Telemetry
from sparta.service.world import World
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
    refused: int
    """Steps left out because something was not finite."""


def mean_metric(scores: Scores, metric: str) -> float:
    """The mean of a metric over the tasks; nan when a task has none (one class only)."""
    values = [task.get(metric) for task in scores.values()]
    return sum(math.nan if value is None else value for value in values) / len(values)


class Trainer:
    """Runs the epochs of one job, from the start or from where `load_state_dict` puts it.

    Args:
        step: trains on one batch.
        evaluate: metrics of the valid split, the same on all ranks; None when there is no such split.
        save: writes a checkpoint of everything, given this trainer's own state.
        feed: gives the batches.
        evaluate_every: steps between evaluations; None for once an epoch.
        watch: decides which evaluation is the best and when to stop.
        stop_early: whether `watch` may end the run.
        stop: asked after every step.
        beat: told of every step.
        bad_steps: refused steps that are put up with.
        skips: counts the rows that the feed leaves out.
        telemetry: is told what happens, for whoever watches.
    """

    def __init__(
        self,
        *,
        sharded: Sharded,
        step: Step,
        feed: Feed,
        evaluate: Callable[[], Scores] | None,
        schedule: Schedule,
        plateau: Plateau | None,
        watch: EarlyStop,
        stop_early: bool,
        save: Callable[[Mapping[str, Any]], None],
        history: History | None,
        progress: Progress,
        world: World,
        log_every: int,
        evaluate_every: int | None,
        save_every: int,
        stop: Stop,
        beat: Callable[[str, int], None],
        bad_steps: int,
        skips: Skips,
        telemetry: Telemetry,
    ) -> None:
        self._sharded = sharded
        self._step = step
        self._feed = feed
        self._evaluate = evaluate
        self._schedule = schedule
        self._plateau = plateau
        self._watch = watch
        self._stop_early = stop_early
        self._save = save
        self._history = history
        self._progress = progress
        self._world = world
        self._log_every = log_every
        self._evaluate_every = evaluate_every
        self._save_every = save_every
        self._stop = stop
        self._beat = beat
        self._bad_steps = bad_steps
        self._skips = skips
        self._telemetry = telemetry
        self._meter = Meter(world.device)
        self.steps = 0
        """Optimizer steps behind us."""
        self._refused = 0
        self._stopped = False  # by the watch
        self._settled = True  # what is due after the last step has been done
        self._passed_over = 0

    def run(self) -> Outcome:
        """Train to the last step or until validation stops improving.

        Raises:
            Stopped: a rank was told to stop, after a step or in an evaluation, which will then be made again.
        """
        if not self._settled:
            self._settle()
        for stretch in (
            () if self._stopped else self._feed.stretches(self.steps, self._idle, self._progress.note)
        ):
            self._meter.restart()  # what came before was no training
            self._telemetry.rests()
            batches = Prefetcher(
                stretch, self._world.device, self._sharded.row_collections, self._telemetry.phases.begin
            )
            for batch in batches:
                self._train(batch, batches.ahead)
                self._settle()
                if self._stopped:
                    break
                self._stop.or_raise()
            if self._stopped:
                break
        return Outcome(
            self.steps,
            self._meter.examples,
            self._meter.seconds,
            self._watch.best_step,
            self._stopped,
            self._refused,
        )

    def state_dict(self) -> dict[str, Any]:
        """Where training stands, as plain numbers; collective."""
        return {
            "step": self.steps,
            "settled": self._settled,
            "stopped": self._stopped,
            "refused": self._refused,
            "best_step": self._watch.best_step,
            "watch": self._watch.state(),
            "plateau": self._plateau.state() if self._plateau else None,
            "meter": self._meter.state_dict(),
            "unwritten": self._history.unwritten if self._history else "",
            "skips": self._skips.state_dict(),
            "feed": self._feed.state_dict(self.steps),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state, of any number of ranks."""
        self.steps = state["step"]
        self._settled = state["settled"]
        self._stopped = state["stopped"]
        self._refused = state["refused"]
        self._watch.load(state["watch"])
        if self._plateau and state["plateau"]:
            self._plateau.load(state["plateau"])
        self._meter.load_state_dict(state["meter"], self._world)
        self._skips.load_state_dict(state["skips"])
        self._feed.load_state_dict(state["feed"])
        self._telemetry.knows(self._skips.by_column(), self._feed.passed_over)
        self._passed_over = self._feed.passed_over

    def _train(self, batch: Batch, meanwhile: Callable[[], None]) -> None:
        step, factor, before = batch.slots.step, self._lr_factor(batch.slots.step), self._step.refused
        self._step.set_lr(factor)
        self._telemetry.before(self._step, factor)
        loss = self._step(batch, meanwhile, self._telemetry.phases.begin)
        refused = self._step.refused > before
        self._telemetry.after(self._step, step, self._feed.epoch(step), refused=refused)
        self.steps, self._settled = step, False
        self._skips.add(batch.skipped)
        if not refused:
            self._meter.add(loss, batch)
            return
        self._refused += 1
        told = f"step {step}: the loss or a gradient is not finite, so the weights are those before it"
        if self._refused > self._bad_steps:
            raise DivergedError(
                f"{told}; lower optim.tables.lr and optim.dense.lr, look for wild values in the dense columns, or "
                f"let more than {self._bad_steps} pass with tolerate.bad_steps"
            )
        self._telemetry.tolerated()
        self._progress.note(f"{told} ({self._refused} of {self._bad_steps} tolerated)")

    def _idle(self) -> None:
        """There is nothing to train on for now."""
        self._beat("idle", self.steps)
        self._telemetry.idles()
        if self._feed.passed_over != self._passed_over:  # which a start after this one is not to try again
            self._passed_over = self._feed.passed_over
            self._telemetry.bad(self._skips.by_column(), self._passed_over)
            self._save(self.state_dict())
        self._stop.or_raise()

    def _settle(self) -> None:
        """Do what is due after a step: log, evaluate, save."""
        step, best = self.steps, self._watch.best_step
        self._beat("step", step)
        ends, every = self._feed.ends(step), self._evaluate_every
        evaluates = ends or (step % every == 0 if every else self._feed.rests(step))
        if (evaluates or step % self._log_every == 0) and self._meter.unread:
            self._log(step)
        if evaluates and self._evaluate:
            with self._meter.paused(), self._telemetry.between("eval"):
                self._stopped = self._validate(step, self._evaluate()) and self._stop_early
        self._settled = True
        if ends or self._stopped or self._watch.best_step != best or step % self._save_every == 0:
            with self._meter.paused(), self._telemetry.between("checkpoint"):
                self._save(self.state_dict())

    def _lr_factor(self, step: int) -> float:
        return self._schedule.scale(step) * (self._plateau.scale if self._plateau else 1.0)

    def _log(self, step: int) -> None:
        """One line of history: the mean loss of the steps since the line before."""
        loss, rate, mine = self._meter.read()
        self._telemetry.logged(loss, mine, rate)
        self._skips.compare()
        self._telemetry.bad(self._skips.by_column(), self._feed.passed_over)
        self._progress.update(step, epoch=self._feed.epoch(step), loss=loss, examples_per_second=rate)
        if self._history:
            self._history.step(
                step, self._feed.epoch(step), loss, self._meter.examples, examples_per_second=round(rate, 1)
            )

    def _validate(self, step: int, scores: Scores) -> bool:
        """Note an evaluation; whether patience is at its end."""
        self._telemetry.evaluated("valid", scores)
        if self._history:
            self._history.evaluation(step, self._feed.epoch(step), "valid", scores)
        self._progress.validated(scores)
        if self._plateau:
            self._plateau.observe(mean_metric(scores, self._plateau.metric))
        return self._watch.observe(mean_metric(scores, self._watch.metric), step)
