"""When the learning rates change: by the step (`Schedule`), or by the validation metric (`Plateau`).

Both give a factor on every learning rate; the caller multiplies. Steps count from 1, so a warm-up of n
steps gives the first step 1/n and the n-th the full rate. `EarlyStop` watches the same metric and
remembers the best. No torch here.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

Decay = Literal["constant", "linear", "cosine", "exponential"]

_UP = {"auc": True, "gauc": True, "logloss": False}


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up from 0, then decay to `floor` at `total_steps`, then `floor`."""

    total_steps: int
    warmup: int = 0
    """Steps; counted in `total_steps`."""
    decay: Decay = "constant"
    """linear and exponential lose the same amount, or share, every step; cosine is half a wave."""
    floor: float = 0.0
    """Factor at the end; constant ignores it."""

    def __post_init__(self) -> None:
        if self.warmup < 0 or self.total_steps < 0:
            raise ValueError(f"warmup {self.warmup}, total_steps {self.total_steps}: neither may be negative")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor {self.floor} is not between 0 and 1")
        if self.decay == "exponential" and self.floor == 0:
            raise ValueError("exponential decay never reaches 0; give a floor above 0, such as 0.01")

    def scale(self, step: int) -> float:
        """The factor of a step."""
        if step < self.warmup:
            return max(step, 0) / self.warmup
        left = self.total_steps - self.warmup
        done = min((step - self.warmup) / left, 1.0) if left > 0 else 1.0  # 0 at full rate, 1 at the end
        match self.decay:
            case "constant":
                return 1.0
            case "linear":
                return 1.0 - (1.0 - self.floor) * done
            case "cosine":
                return self.floor + (1.0 - self.floor) * (1.0 + math.cos(math.pi * done)) / 2
            case "exponential":
                return math.pow(self.floor, done)


class _Patience:
    """Counts evaluations in a row without a gain of more than `min_delta` on the last gain.

    AUC and GAUC gain upwards, LogLoss downwards. NaN (a metric the rows do not define) is no gain.
    """

    def __init__(self, metric: str, patience: int, min_delta: float) -> None:
        if metric not in _UP:
            raise ValueError(f"metric {metric!r}: nothing can be watched but {', '.join(_UP)}")
        if patience < 0 or min_delta < 0:
            raise ValueError(f"patience {patience}, min_delta {min_delta}: neither may be negative")
        self.metric = metric
        self.patience = patience
        self.min_delta = min_delta
        self.reference: float | None = None
        """Value of the last gain; a slow climb counts once it has gone `min_delta` in all."""
        self.without_gain = 0

    def observe(self, value: float) -> bool:
        """Take an evaluation; whether more of them in a row than `patience` brought no gain."""
        if self.gains(value, self.reference, self.min_delta):
            self.reference, self.without_gain = value, 0
        else:
            self.without_gain += 1
        return self.without_gain > self.patience

    def gains(self, value: float, on: float | None, by: float = 0.0) -> bool:
        """Whether `value` is better by more than `by`; any number is better than none."""
        if on is None or math.isnan(value):
            return not math.isnan(value)
        return value > on + by if _UP[self.metric] else value < on - by

    def state(self) -> dict[str, Any]:
        return {"reference": self.reference, "without_gain": self.without_gain}

    def load(self, state: dict[str, Any]) -> None:
        self.reference, self.without_gain = state["reference"], state["without_gain"]


class Plateau:
    """Multiplies `scale` by `factor` each time the metric gains nothing for more than `patience` evaluations."""

    def __init__(
        self,
        *,
        metric: str = "auc",
        factor: float = 0.1,
        patience: int = 0,
        min_delta: float = 0.0,
        floor: float = 0.0,
    ) -> None:
        if not 0 < factor < 1:
            raise ValueError(f"factor {factor} is not between 0 and 1")
        if not 0 <= floor <= 1:
            raise ValueError(f"floor {floor} is not between 0 and 1")
        self.metric = metric
        self.factor = factor
        self.floor = floor
        self.scale = 1.0
        self._patience = _Patience(metric, patience, min_delta)

    def observe(self, value: float) -> float:
        """Take an evaluation; the factor from now on, never below `floor`."""
        if self._patience.observe(value):
            self.scale = max(self.scale * self.factor, self.floor)
            self._patience.without_gain = 0
        return self.scale

    def state(self) -> dict[str, Any]:
        """Plain numbers, for a checkpoint."""
        return {"scale": self.scale, **self._patience.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.scale = state["scale"]
        self._patience.load(state)


class EarlyStop:
    """Keeps the best evaluation, and says when the metric has gained nothing for too long.

    The best is the best by any margin; only patience asks for `min_delta`.
    """

    def __init__(self, *, metric: str = "auc", patience: int = 2, min_delta: float = 0.0) -> None:
        self.metric = metric
        self.best: float | None = None
        self.best_step: int | None = None
        self._patience = _Patience(metric, patience, min_delta)

    def observe(self, value: float, step: int) -> bool:
        """Take the evaluation after `step`; whether to stop."""
        if self._patience.gains(value, self.best):
            self.best, self.best_step = value, step
        return self._patience.observe(value)

    def state(self) -> dict[str, Any]:
        """Plain numbers, for a checkpoint."""
        return {"best": self.best, "best_step": self.best_step, **self._patience.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.best, self.best_step = state["best"], state["best_step"]
        self._patience.load(state)
