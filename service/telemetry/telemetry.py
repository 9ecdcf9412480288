"""From what happens in training to instruments: called by the trainer, read by the endpoint's thread.

On the path of a step are a few clock readings, additions, and a reference to its scores; once a second the
tables are looked at too. What takes longer - areas under curves, the reading of tensors - is done in `refresh`,
when somebody asks.
"""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.registry import Collector

from sparta.models.errors import DataError
from sparta.service.checkpoint.manifest import Manifest
from sparta.service.step import Step, unheard
from sparta.service.telemetry.instruments import PHASES, WINDOW, Instruments, Labelled
from sparta.service.telemetry.phases import BETWEEN, Marks, Phases, timer
from sparta.service.telemetry.window import Window
from sparta.sharding.rows.sample import Sampler
from sparta.sharding.rows.tables import RowTables

SAMPLE_SECONDS = 1.0
"""Between two steps in which the tables are looked at."""


class Telemetry:
    """What one rank tells of one training.

    Args:
        labels: names of the tasks, in the order of the logits' columns.
        rates: learning rates by part (tables, dense), before any schedule.
        columns: of the dataset, any of which may turn out bad.
        waiting: batches that are read ahead.
        note: told of what the user should know.
        about: versions and the like.
    """

    def __init__(
        self,
        *,
        run: str,
        rank: int,
        device: torch.device,
        labels: Sequence[str],
        rates: Mapping[str, float],
        columns: Sequence[str] = (),
        waiting: Callable[[], int] = lambda: 0,
        note: Callable[[str], None] = unheard,
        about: Mapping[str, str] | None = None,
    ) -> None:
        self.own = CollectorRegistry()
        """Without the labels run and rank."""
        self.instruments = Instruments(self.own)
        ProcessCollector(registry=self.own)
        self.registry: Collector = Labelled(self.own, {"run": run, "rank": str(rank)}, self.refresh)
        self.note = note
        self._device = device
        self._rates = dict(rates)
        self._waiting = waiting
        self._window = Window(labels)
        self._lock = threading.Lock()
        self._sample: tuple[RowTables, Sampler] | None = None
        self._filling: tuple[RowTables, Sampler] | None = None
        self._next_sample = time.monotonic()
        self._step_ended: float | None = None
        self._gradient_norm: torch.Tensor | None = None
        self._rows: Counter[str] = Counter()
        self._partitions = 0
        phase = {name: self.instruments.phase_seconds.labels(name) for name in PHASES}
        self.phases: Marks = Phases(timer(device), lambda name, seconds: phase[name].observe(seconds))
        self.status: dict[str, Any] = {"run": run, "rank": rank, "step": 0}
        """For people; plain values."""
        for column in columns:
            self.instruments.bad_rows.labels(column)
        self.instruments.build.info({"device": device.type, **(about or {})})
        self.instruments.checkpoint_last.set_to_current_time()
        self.instruments.loss.set(math.nan)

    # --- what the trainer tells ---------------------------------------------------------------------------

    def begin(
        self, step: int, total_steps: int | None, starts: int, plan: Mapping[str, int], last: Manifest | None
    ) -> None:
        """Training goes on after `step`.

        Args:
            starts: of the run before this one.
            plan: tables by sharding type.
            last: the checkpoint it goes on from.
        """
        self.instruments.step.set(step)
        self.instruments.planned_steps.set(math.nan if total_steps is None else total_steps)
        self.instruments.restarts.inc(starts)
        self.status |= {"step": step, "steps": total_steps, "starts": starts, "plan": dict(plan)}
        if last:
            self._checkpoint(last.step, last.bytes, last.about.get("at", time.time()))

    def before(self, step: Step, factor: float) -> None:
        """A step is about to be taken, at `factor` times the learning rates."""
        for part, rate in self._rates.items():
            self.instruments.learning_rate.labels(part).set(rate * factor)
        self.instruments.idle.set(0)
        if step.tables and time.monotonic() >= self._next_sample:
            self._filling = step.tables, step.tables.sample()
            self._next_sample = time.monotonic() + SAMPLE_SECONDS

    def after(self, step: Step, number: int, epoch: int, *, refused: bool) -> None:
        """It has been taken."""
        now = time.perf_counter()
        if self._step_ended is not None:
            self.instruments.step_seconds.observe(now - self._step_ended)
        self._step_ended = now
        self.phases.end_step()
        self.instruments.steps.inc()
        self.instruments.step.set(number)
        self.instruments.epoch.set(epoch)
        self.instruments.last_step.set_to_current_time()
        self.status |= {"step": number, "epoch": epoch}
        if refused:
            self.instruments.nonfinite_steps.inc()
            return
        seen = step.seen
        self._window.add(seen.logits, seen.labels, seen.weights)
        self._gradient_norm = seen.gradient_norm
        if self._filling is not None:
            # Whole, and without a lock: a scrape that is under way is not waited for.
            self._sample, self._filling = self._filling, None

    def tolerated(self) -> None:
        """The batch of a refused step is left out, and training goes on."""
        self.instruments.skipped_batches.inc()

    @contextmanager
    def between(self, phase: str) -> Iterator[None]:
        """What is no step: eval, checkpoint."""
        began = time.perf_counter()
        self.phases.outside(phase)
        try:
            yield
        finally:
            self.phases.outside(BETWEEN)
            spent = time.perf_counter() - began
            self.instruments.phase_seconds.labels(phase).observe(spent)
            if self._step_ended is not None:
                self._step_ended += spent

    def rests(self) -> None:
        """The next step does not follow the last one at once."""
        self._step_ended = None

    def idles(self) -> None:
        """There is nothing to train on."""
        self.rests()
        self.instruments.idle.set(1)

    def logged(self, loss: float, examples: int, examples_per_second: float) -> None:
        """Loss and pace of all ranks, this rank's samples, since the call before."""
        self.instruments.loss.set(loss)
        self.instruments.examples.inc(examples)
        self.status |= {"loss": _plain(loss), "examples_per_second": round(examples_per_second, 1)}

    def knows(self, rows: Mapping[str, int], partitions: int) -> None:
        """Bad rows by column and files passed over before this process began."""
        self._rows, self._partitions = Counter(rows), partitions

    def bad(self, rows: Mapping[str, int], partitions: int) -> None:
        """The same as of now."""
        for column, count in (Counter(rows) - self._rows).items():
            self.instruments.bad_rows.labels(column).inc(count)
        self.instruments.skipped_partitions.inc(partitions - self._partitions)
        self.knows(rows, partitions)

    def evaluated(self, split: str, scores: Mapping[str, Mapping[str, float | None]]) -> None:
        """Metrics of a split, by task."""
        for task, metrics in scores.items():
            for name, instrument in (
                ("auc", self.instruments.auc),
                ("logloss", self.instruments.logloss),
                ("ne", self.instruments.normalized_entropy),
                ("calibration", self.instruments.calibration),
            ):
                value = metrics.get(name)
                instrument.labels(task, split).set(math.nan if value is None else value)

    def saved(self, step: int, size: int, seconds: float, stalled: float) -> None:
        """A checkpoint of `size` bytes is there, `seconds` after its step, which it held up for a part of them."""
        self.instruments.checkpoints.inc()
        self._checkpoint(step, size, time.time())
        self.instruments.checkpoint_seconds.observe(seconds)
        self.instruments.checkpoint_stall_seconds.observe(stalled)

    def not_saved(self) -> None:
        """A save failed."""
        self.instruments.checkpoint_failures.inc()

    def _checkpoint(self, step: int, size: int, at: float) -> None:
        self.instruments.checkpoint_last.set(at)
        self.instruments.checkpoint_step.set(step)
        self.instruments.checkpoint_bytes.set(size)
        self.status["checkpoint"] = {"step": step, "at": round(at, 1)}

    # --- when somebody asks -------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Work out what is not told but looked at."""
        with self._lock:
            self.instruments.data_queue.set(self._waiting())
            self._refresh_window()
            self._refresh_tables()
            norm = self._gradient_norm
            self.instruments.dense_gradient_norm.set(math.nan if norm is None else float(norm))
            if self._device.type == "cuda":
                for kind, size in (
                    ("allocated", torch.cuda.memory_allocated(self._device)),
                    ("reserved", torch.cuda.memory_reserved(self._device)),
                    ("total", torch.cuda.get_device_properties(self._device).total_memory),
                ):
                    self.instruments.gpu_memory.labels(kind).set(size)

    def _refresh_window(self) -> None:
        try:
            self.evaluated(WINDOW, self._window.metrics())
        except DataError:  # a window without a sample of weight, or with a logit that is not finite
            self.evaluated(WINDOW, {label: {} for label in self._window.labels})

    def _refresh_tables(self) -> None:
        if self._sample is None:
            return
        tables, sample = self._sample
        told = self.instruments
        for name, rows in tables.rows_here().items():
            told.table_rows.labels(name).set(rows)
        for name, most in tables.largest().items():
            told.table_frequency_max.labels(name).set(most)
        for name, one in sample.read().items():
            told.table_ids.labels(name).set(one.ids)
            told.table_touched_rows.labels(name).set(one.rows)
            if one.rows:
                told.table_dedup_ratio.labels(name).set(one.ids / one.rows)
            if one.rows and one.radius is not None:
                told.table_radius_mean.labels(name).set(one.radius)
            if one.perturbation is not None:
                told.table_perturbation_norm.labels(name).set(one.perturbation)
            told.table_gradient_norm.labels(name).set(one.gradient)


def _plain(number: float) -> float | None:
    return number if math.isfinite(number) else None
