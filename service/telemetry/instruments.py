"""Every instrument of a rank, in one place: dashboards, alerts and docs are checked against this list.

Names have the prefix `sparta_` and base units. Labels are few and bounded: tables, tasks, columns, phases, never
ids. Every sample carries `run` and `rank` besides, which `Labelled` adds, so that a series is the same whoever
scrapes it and on whatever port. Counters count from this process's start, as Prometheus expects.
"""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

PHASES = ("data_wait", "input_dist", "ascend", "second_pass", "optimizer", "eval", "checkpoint")
"""What a rank's time goes to. In a plain step the one pass there is counts as the second."""

WINDOW = "window"
"""The split of metrics of the samples trained on last, each scored before it was learned from."""

SHORT_SECONDS = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    10.0,
)
PHASE_SECONDS = (*SHORT_SECONDS, 60.0, 300.0, 1800.0)
LONG_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)


class Instruments:
    """What one rank tells of itself, registered in `registry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"sparta_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"sparta_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"sparta_{name}", text, labels, buckets=buckets, registry=registry)

        # --- how far, how fast
        self.examples = counter(
            "examples", "Samples trained on by this rank; their sum over ranks is the run's."
        )
        self.steps = counter("steps", "Steps taken; the same on every rank.")
        self.step = gauge("step", "Number of the last step of the run, resumed ones included.")
        self.planned_steps = gauge("planned_steps", "Where training ends at the latest; NaN if nobody knows.")
        self.epoch = gauge("epoch", "Epoch of the last step, from 0.")
        self.last_step = gauge("last_step_timestamp_seconds", "When the last step ended.")
        self.restarts = counter("restarts", "Starts of this run before this one.")
        self.step_seconds = histogram(
            "step_seconds", "Time from the end of a step to the end of the next.", SHORT_SECONDS
        )
        self.phase_seconds = histogram(
            "phase_seconds", "Time of a step, or of what is between steps, by phase.", PHASE_SECONDS, "phase"
        )

        self.idle = gauge("idle", "1 while a watched folder has nothing to train on, else 0.")

        # --- whether it learns
        self.loss = gauge(
            "loss", "Mean training loss of the steps since the last logged one, over all ranks."
        )
        self.auc = gauge("auc", "Area under the ROC curve.", "task", "split")
        self.logloss = gauge("logloss", "Mean binary cross-entropy.", "task", "split")
        self.normalized_entropy = gauge(
            "normalized_entropy", "LogLoss over the entropy of the base rate.", "task", "split"
        )
        self.calibration = gauge("calibration_ratio", "Mean prediction over mean label.", "task", "split")
        self.learning_rate = gauge("learning_rate", "Learning rate of the last step.", "part")
        self.dense_gradient_norm = gauge(
            "dense_gradient_norm", "2-norm of the dense gradient of the last step, before clipping."
        )

        # --- tables and Helen, sampled; of this rank's rows unless it says otherwise
        self.table_rows = gauge("table_rows", "Rows of this table that are here.", "table")
        self.table_ids = gauge("table_ids", "Ids that one step looked up here.", "table")
        self.table_touched_rows = gauge("table_touched_rows", "Different rows among them.", "table")
        self.table_dedup_ratio = gauge("table_dedup_ratio", "Ids by different rows.", "table")
        self.table_frequency_max = gauge(
            "table_frequency_max",
            "N*: occurrences of the table's most frequent row, over all ranks.",
            "table",
        )
        self.table_radius_mean = gauge("table_radius_mean", "Mean radius of the touched rows.", "table")
        self.table_perturbation_norm = gauge(
            "table_perturbation_norm", "2-norm of the ascent's perturbation.", "table"
        )
        self.table_gradient_norm = gauge(
            "table_gradient_norm", "2-norm of the gradient of the last pass.", "table"
        )

        # --- what went wrong
        self.nonfinite_steps = counter(
            "nonfinite_steps",
            "Steps in which a loss or gradient was not finite; weights were left as they were.",
        )
        self.skipped_batches = counter(
            "skipped_batches", "Batches that such steps left out and the job tolerated."
        )
        self.bad_rows = counter("bad_rows", "Rows left out for a bad value, over all ranks.", "column")
        self.skipped_partitions = counter(
            "skipped_partitions", "Files of a watched folder that were passed over."
        )

        # --- checkpoints
        self.checkpoints = counter("checkpoints", "Checkpoints committed.")
        self.checkpoint_failures = counter("checkpoint_failures", "Saves that failed.")
        self.checkpoint_last = gauge(
            "checkpoint_last_timestamp_seconds",
            "When the last checkpoint was committed; of the start of this process before the first.",
        )
        self.checkpoint_step = gauge("checkpoint_step", "Step of the last checkpoint.")
        self.checkpoint_bytes = gauge("checkpoint_bytes", "Size of the last checkpoint, of all ranks.")
        self.checkpoint_seconds = histogram(
            "checkpoint_seconds", "From the step a save was taken in to its commit.", LONG_SECONDS
        )
        self.checkpoint_stall_seconds = histogram(
            "checkpoint_stall_seconds", "What a save held up the steps.", LONG_SECONDS
        )

        # --- resources
        self.data_queue = gauge("data_queue_batches", "Batches read ahead and not taken yet.")
        self.gpu_memory = gauge("gpu_memory_bytes", "GPU memory of this rank.", "kind")
        self.build = Info("sparta_build", "Versions that this run is made of.", registry=registry)


class Labelled(Collector):
    """What a registry collects, each sample with some labels more.

    Args:
        refresh: called before everything is collected, if given.
    """

    def __init__(
        self, inner: CollectorRegistry, labels: Mapping[str, str], refresh: Callable[[], None] = lambda: None
    ) -> None:
        self._inner = inner
        self._labels = dict(labels)
        self._refresh = refresh

    def collect(self) -> Iterator[Metric]:
        self._refresh()
        for metric in self._inner.collect():
            metric.samples = [
                sample._replace(labels={**sample.labels, **self._labels}) for sample in metric.samples
            ]
            yield metric
