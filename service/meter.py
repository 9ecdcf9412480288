"""Loss, samples and time of the training steps since the last logged one, of one rank and of all."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sparta.models.batch import Batch
from sparta.service.world import World
from sparta.sharding.collectives import gather, total


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
        self._read = True
        self._mark = time.perf_counter()

    @property
    def unread(self) -> bool:
        """Whether steps were added since the last `read`."""
        return not self._read

    def restart(self) -> None:
        """Time counts from now on."""
        self._mark = time.perf_counter()

    def add(self, loss: Tensor, batch: Batch) -> None:
        self._loss += loss
        self._real += (batch.slots.weights > 0).sum()
        self._steps += 1
        self._read = False

    def read(self) -> tuple[float, float, int]:
        """(mean loss, examples a second, both over all ranks; examples of this one) since the last call; collective."""
        sums = torch.stack([self._loss, self._real.double()])
        mine = round(float(sums[1]))
        loss, examples = total(sums).tolist()
        now = time.perf_counter()
        elapsed, steps = now - self._mark, self._steps
        self.examples += round(examples)
        self.seconds += elapsed
        self._loss.zero_()
        self._real.zero_()
        self._steps, self._read = 0, True
        self._mark = now
        return loss / steps, examples / elapsed, mine

    def state_dict(self) -> dict[str, Any]:
        """What was read, and the sums of every rank that were not; collective."""
        seconds = self.seconds + (time.perf_counter() - self._mark if self.unread else 0.0)
        pending = gather((float(self._loss), int(self._real)))
        return {"examples": self.examples, "seconds": seconds, "steps": self._steps, "pending": pending}

    def load_state_dict(self, state: Mapping[str, Any], world: World) -> None:
        """Each rank takes up its own sums; on another number of ranks the first takes them all."""
        self.examples, self.seconds, self._steps = state["examples"], state["seconds"], state["steps"]
        self._read = self._steps == 0
        pending = state["pending"]
        if len(pending) == world.ranks:
            mine = pending[world.rank]
        else:
            sums = [sum(values) for values in zip(*pending, strict=True)]
            mine = sums if world.first else (0.0, 0)
        self._loss.fill_(mine[0])
        self._real.fill_(mine[1])

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Evaluations and checkpoints are not training time."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._mark += time.perf_counter() - began
