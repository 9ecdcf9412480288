"""What one step did to each table, for whoever watches: sums over the rows that one rank touched.

Nothing is read from the device before `read`, and nothing is summed over the ranks: squares of norms add up.
"""

# T = tables of a group, u = touched rows

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparta.sharding.rows.call import Call
from sparta.sharding.rows.learner import Learner, Pass


@dataclass
class TableSample:
    """One table in one step, on this rank; where a table is split by columns, who has the first counts its rows."""

    ids: float = 0.0
    """Looked up."""
    rows: float = 0.0
    """Different ones among them."""
    radius: float | None = None
    """Mean over the rows; of tables that ascended in this step."""
    perturbation: float | None = None
    """2-norm; of Helen and SAM, likewise."""
    gradient: float = 0.0
    """2-norm, of the pass that was stepped by."""


class Sampler:
    """Takes the passes of one step as RowTables has them.

    Args:
        counts: whether this rank tells of a learner's rows; of replicas one rank does.
    """

    def __init__(self, counts: Callable[[Learner], bool]) -> None:
        self._counts = counts
        self._climbed: dict[Learner, tuple[Tensor, Tensor]] = {}
        self._stepped: list[tuple[Learner, Tensor]] = []

    def ascended(self, call: Call, one: Pass, scale: Tensor, largest: Tensor) -> None:
        """Take pass 1, of which `scale` (u,) and N* `largest` (T,) have come."""
        learner = call.learner
        if not self._counts(learner):
            return
        radius = learner.scale(
            one, largest, torch.ones(len(learner.names), dtype=torch.float64, device=scale.device)
        )
        sizes = one.touched.bounds.diff().clamp(min=1)
        self._climbed[learner] = (
            learner.by_table(one.touched, radius) / sizes,
            learner.by_table(one.touched, scale.square() * one.sum.squares),
        )

    def stepped(self, passes: Sequence[tuple[Call, Pass]]) -> None:
        """Take the passes that the rows are stepped by."""
        for call, one in passes:
            learner, touched = call.learner, one.touched
            if not self._counts(learner):
                continue
            found = [
                learner.by_table(touched, touched.counts.double()),
                touched.bounds.diff().double(),
                learner.by_table(touched, one.sum.squares),
                *self._climbed.get(learner, ()),
            ]
            self._stepped.append((learner, torch.stack(found)))

    def read(self) -> dict[str, TableSample]:
        """By table; waits for the device."""
        found: dict[str, TableSample] = {}
        for learner, sums in self._stepped:
            for name, learning, origin, (ids, rows, gradient, *climbed) in zip(
                learner.names, learner.learning, learner.group.origins, sums.T.tolist(), strict=True
            ):
                one = found.setdefault(name, TableSample())
                rule, first = learning.optimizer.rule, origin[1] == 0
                one.gradient = (one.gradient**2 + gradient) ** 0.5
                if first:
                    one.ids, one.rows = ids, rows
                if not climbed or rule is None:
                    continue
                if first:
                    one.radius = climbed[0]
                # ASAM's is another norm; of Helen's rows every shard knows the whole.
                if rule == "sam" or (rule == "helen" and first):
                    one.perturbation = ((one.perturbation or 0.0) ** 2 + climbed[1]) ** 0.5
        return found
