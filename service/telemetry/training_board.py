"""The dashboard `Training`: is it learning, how fast, what is slow, what went wrong."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from sparta.service.telemetry.fault_rows import CHECKPOINT_AGE, CHECKPOINTS, FAULTS, MACHINE, STEP
from sparta.service.telemetry.panels import (
    FULL,
    HALF,
    Row,
    board,
    density,
    lines,
    number,
    quantile,
    time_share,
)

_STEPS_A_SECOND = "max by (name, run) (rate(sparta_steps_total{@}[$__rate_interval]))"
_EXAMPLES_A_SECOND = "sum by (name, run) (rate(sparta_examples_total{@}[$__rate_interval]))"
_PHASE_OF_A_STEP = (
    'sum by (name, run, phase) (rate(sparta_phase_seconds_sum{@,phase!~"eval|checkpoint"}[$__rate_interval]))'
    # Of the steps that were timed, which on a GPU are not all; each has this phase.
    " / on (name, run) group_left ()"
    ' sum by (name, run) (rate(sparta_phase_seconds_count{@,phase="second_pass"}[$__rate_interval]))'
)


def training() -> Dashboard:
    """The dashboard, ready to be written."""
    text = "Is it learning, how fast, what is slow. Sums and maxima are over the chosen ranks."
    rows = [_GLANCE, _LEARNING, _SPEED, _SLOW, CHECKPOINTS, FAULTS, MACHINE]
    return board("Training", "sparta-training", text, rows)


_GLANCE: Row = (
    "At a glance",
    [
        number(
            "Examples per second",
            "Samples trained on, summed over the ranks.",
            "si:examples/s",
            (_EXAMPLES_A_SECOND, "{{run}}"),
        ),
        number("Step", "The run's last step, resumed ones included.", "none", (STEP, "{{run}}")),
        number(
            "Progress",
            "Share of the planned steps; early stopping may end it sooner. NaN where the end is not known.",
            "percentunit",
            (f"{STEP} / max by (name, run) (sparta_planned_steps{{@}})", "{{run}}"),
            decimals=1,
        ),
        number(
            "Time left",
            "Planned steps that are missing, at the present speed.",
            "dtdurations",
            (f"(max by (name, run) (sparta_planned_steps{{@}}) - {STEP}) / {_STEPS_A_SECOND}", "{{run}}"),
        ),
        number(
            "Since the last step",
            "Grows during an evaluation too. Alert: SpartaNoProgress.",
            "s",
            ("time() - max by (name, run) (sparta_last_step_timestamp_seconds{@} > 0)", "{{run}}"),
            steps=[(120, "yellow"), (900, "red")],
        ),
        number(
            "Checkpoint age",
            "What a crash now would lose, at most. Alert: SpartaCheckpointOld.",
            "s",
            (CHECKPOINT_AGE, "{{run}}"),
            steps=[(3600, "yellow"), (7200, "red")],
        ),
        number("Epoch", "From 0.", "none", ("max by (name, run) (sparta_epoch{@})", "{{run}}")),
        number(
            "Ranks",
            "Ranks that report. Alert: SpartaRanksMissing.",
            "none",
            ("count by (name, run) (count by (name, run, rank) (sparta_step{@}))", "{{run}}"),
        ),
        number(
            "Endpoints up",
            "Endpoints that answered the last scrape; of the whole job. Alert: SpartaRankDown.",
            "percentunit",
            ('avg by (name) (up{job="sparta",name=~"$name"})', "{{name}}"),
            steps=[(0, "red"), (1, "green")],
        ),
        number(
            "Restarts",
            "Starts after a failure, in the time shown. Alert: SpartaRestartLoop.",
            "none",
            (
                "increase(max by (name, run) (sparta_restarts_total{@})[$__range:$__interval])",
                "{{run}}",
            ),
            steps=[(1, "yellow"), (3, "red")],
            decimals=0,
            at_end=True,
        ),
        number(
            "Steps not finite",
            "Left out, in the time shown. Alert: SpartaNonFinite.",
            "none",
            ("max by (name, run) (increase(sparta_nonfinite_steps_total{@}[$__range]))", "{{run}}"),
            steps=[(1, "red")],
            decimals=0,
            at_end=True,
        ),
        number(
            "Failed saves",
            "Checkpoints that could not be written, in the time shown. Alert: SpartaCheckpointFailing.",
            "none",
            ("max by (name, run) (increase(sparta_checkpoint_failures_total{@}[$__range]))", "{{run}}"),
            steps=[(1, "red")],
            decimals=0,
            at_end=True,
        ),
    ],
)

_LEARNING: Row = (
    "Is it learning",
    [
        lines(
            "Loss",
            "Mean training loss of the steps between two log lines, over all ranks.",
            "none",
            ("max by (name, run) (sparta_loss{@})", "{{run}}"),
        ),
        lines(
            "AUC",
            "`window`: the last samples, each scored before it was learned from; `valid`: the whole split."
            " Alerts: SpartaWindowAucFall, SpartaValidAucFall.",
            "none",
            ("max by (name, run, task, split) (sparta_auc{@})", "{{run}} {{task}} {{split}}"),
        ),
        lines(
            "LogLoss",
            "Mean binary cross-entropy. Rising on `valid` while it falls on `window`: it overfits.",
            "none",
            ("max by (name, run, task, split) (sparta_logloss{@})", "{{run}} {{task}} {{split}}"),
        ),
        lines(
            "Normalized entropy",
            "LogLoss over that of always predicting the base rate; above 1 it is worse than that.",
            "none",
            ("max by (name, run, task, split) (sparta_normalized_entropy{@})", "{{run}} {{task}} {{split}}"),
            steps=[(1, "red")],
        ),
        lines(
            "Calibration",
            "Mean prediction over mean label: 1 is right, above it clicks are promised that do not come.",
            "none",
            ("max by (name, run, task, split) (sparta_calibration_ratio{@})", "{{run}} {{task}} {{split}}"),
            steps=[(0, "red"), (0.9, "green"), (1.1, "red")],
        ),
        lines(
            "Learning rate",
            "Of the last step, after schedule and plateau.",
            "none",
            ("max by (name, run, part) (sparta_learning_rate{@})", "{{run}} {{part}}"),
            logarithmic=True,
        ),
        lines(
            "Dense gradient norm",
            "Before clipping. Growing by orders of magnitude: it is about to diverge.",
            "none",
            ("max by (name, run) (sparta_dense_gradient_norm{@})", "{{run}}"),
            logarithmic=True,
            width=FULL,
        ),
    ],
)

_SPEED: Row = (
    "How fast",
    [
        lines(
            "Examples per second",
            "All ranks, and each. Alert: SpartaThroughputDrop.",
            "si:examples/s",
            (_EXAMPLES_A_SECOND, "{{run}}"),
            (
                "sum by (name, run, rank) (rate(sparta_examples_total{@}[$__rate_interval]))",
                "{{run}} rank {{rank}}",
            ),
            from_zero=True,
        ),
        lines(
            "Step time",
            "From the end of a step to the end of the next; what lies between steps counts.",
            "s",
            *[
                (quantile(share, "step_seconds", "name, run"), f"{{{{run}}}} p{share * 100:.0f}")
                for share in (0.5, 0.9, 0.99)
            ],
            from_zero=True,
        ),
        density(
            "Distribution of step times",
            "Two bands: some steps do more, such as a save or an ascent every few steps.",
            "s",
            "sum by (le) (increase(sparta_step_seconds_bucket{@}[$__rate_interval]))",
        ),
    ],
)

_SLOW: Row = (
    "What is slow",
    [
        lines(
            "Time of a step by phase",
            "Mean over steps and ranks; what happens between steps is not in it.",
            "s",
            (_PHASE_OF_A_STEP, "{{run}} {{phase}}"),
            stacked=True,
            from_zero=True,
            width=HALF,
        ),
        lines(
            "99th percentile by phase",
            "The slow ones of each phase, over all ranks.",
            "s",
            (quantile(0.99, "phase_seconds", "name, run, phase"), "{{run}} {{phase}}"),
            from_zero=True,
            width=HALF,
        ),
        lines(
            "Share of time spent waiting for data",
            "By rank: one that waits holds up all others. Alert: SpartaDataBound.",
            "percentunit",
            (time_share("data_wait", "name, run, rank"), "{{run}} rank {{rank}}"),
            steps=[(0.3, "red")],
            from_zero=True,
            width=HALF,
        ),
        lines(
            "Batches read ahead",
            "At 0 training waits for data; steadily full, data is not what is slow.",
            "none",
            ("min by (name, run, rank) (sparta_data_queue_batches{@})", "{{run}} rank {{rank}}"),
            from_zero=True,
            width=HALF,
        ),
    ],
)
