"""How a run goes: training, checkpoints, and what it puts up with. Sections of the job file; no torch here."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from sparta.service.settings import Settings


class EarlyStopSettings(Settings):
    metric: Literal["auc", "gauc", "logloss"] = "auc"
    patience: NonNegativeInt = 2
    """Evaluations without improvement that are let pass; the best weights are restored."""
    min_delta: NonNegativeFloat = 0.0


class TrainSettings(Settings):
    epochs: PositiveInt = 1
    max_steps: PositiveInt | None = None
    """Stop after so many steps, whatever the epochs."""
    seed: NonNegativeInt = 1
    ranks: PositiveInt = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    """What training multiplies matrices in; weights, sums, loss and evaluation stay in float32. bf16 is faster
    where the processor knows it (AMX, AVX512-BF16, GPUs)."""
    log_every: PositiveInt = 10
    """Steps between two lines of history.jsonl."""
    evaluate_every: PositiveInt | None = None
    """Steps between two evaluations on the valid split; once an epoch if not said."""
    early_stop: EarlyStopSettings | None = None
    gauc_by: str | None = None
    """Categorical feature whose values group the rows for GAUC, such as the user."""
    test: Literal["scored", "kept", "unread"] = "scored"
    """The test split at the end: scored; its logits kept beside the result, too; or not read, as while one searches."""


class CheckpointSettings(Settings):
    every: PositiveInt = 1000
    """Optimizer steps between two checkpoints; there is one at the end and of every best evaluation too."""
    keep: PositiveInt = 3
    """Newest ones kept, and beside them the best evaluation of each."""
    path: str | None = None
    """Folder or fsspec URL (s3://bucket/run) that all ranks reach; `checkpoints/` of the run directory if not said."""
    background: bool = True
    """Copy inside the step, write beside the next ones; False waits until all is on disk."""
    grace_seconds: PositiveFloat = 8.0
    """Between SIGTERM and SIGKILL; a last checkpoint that would take longer is not begun."""


class TolerateSettings(Settings):
    """Each limit is of a whole run; 0 stops at the first."""

    bad_rows: NonNegativeInt = 0
    """Rows with a bad id, a null, a NaN, or in an unreadable row group that are left out and counted."""
    bad_partitions: NonNegativeInt = 0
    """Files of the watched folder that are damaged or break a rule, passed over as a whole and not tried again."""
    bad_steps: NonNegativeInt = 0
    """Steps refused because the loss or a gradient was not finite."""
    restarts: NonNegativeInt = 3
    """Times that all ranks are started again after one died, to resume from the newest checkpoint."""
    stuck_seconds: PositiveFloat = 600.0
    """Without progress of any kind after which a rank is given up."""


class MetricsSettings(Settings):
    """The HTTP endpoint of every rank; see service/RUNBOOK.md."""

    port: int | None = Field(default=0, ge=0, le=65535)
    """Of a machine's first rank, the others side by side above; 0 for free ones, null for no endpoint."""
    healthy_seconds: PositiveFloat = 600.0
    """Without a finished step, evaluation or save after which /healthz fails."""
    linger_seconds: NonNegativeFloat = 0.0
    """At the end: wait so long at most for one more scrape, lest a short run's last numbers go unseen."""
    pushgateway: str | None = None
    """host:port of a Prometheus Pushgateway that is given the last numbers at the end."""
