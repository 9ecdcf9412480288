"""One batch's ids at one bag, and what a step finds out about them."""

# B = samples, C = pooled columns, u = touched rows

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sparta.optim.rows.group import Bags, Sum, Touched
from sparta.sharding.rows.learner import Learner


@dataclass(eq=False)
class Call:
    """See the module."""

    learner: Learner
    bags: Bags
    pooled: Tensor | None = None
    """(B, C) gradient of the last pass; None until its backward came by."""

    @cached_property
    def touched(self) -> Touched:
        """The rows of the batch, each once; found at most once a step."""
        return self.learner.kernels.touch(self.learner.group, self.bags, self.learner.stamps)

    def catch_up(self) -> None:
        """Have the rows of the batch pay their weight decay; collective for replicas that have any."""
        if self.learner.decay:
            self.learner.decay.catch_up(self.touched)

    def reduce(self, *, ascending: bool) -> Sum:
        """The gradient of each touched row, from the pooled one, which is given up."""
        return self._reduced(self.touched, self.learner.l2, ascending=ascending)

    def _reduced(self, touched: Touched, l2: Tensor | None, *, ascending: bool) -> Sum:
        learner = self.learner
        pooled = self.nothing() if self.pooled is None else self.pooled  # None: no loss depended on it
        self.pooled = None
        return learner.kernels.reduce(
            learner.group, self.bags, touched, pooled, learner.eta if ascending else None, l2
        )

    def nothing(self) -> Tensor:
        """(B, C) zeros."""
        group = self.learner.group
        samples = (len(self.bags.offsets) - 1) // sum(shape.features for shape in group.shapes)
        return torch.zeros(samples, group.columns, device=group.weights.device)
