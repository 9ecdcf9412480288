"""Where a trainer's batches come from, in one order whatever the ranks: epochs of a dataset, or what arrives.

A feed gives stretches: batches one after the other, with work due when the last of them is done. Where it stands
is a function of the step, since batches are made ahead of the step that takes them.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from sparta.models.batch import Batch
from sparta.service.data.loader import Loader
from sparta.service.data.partitions import Partitions
from sparta.service.world import World


class Feed(Protocol):
    """What the trainer needs."""

    total_steps: int | None
    """Where training ends at the latest; None if nobody knows."""

    def stretches(self, step: int, idle: Callable[[], None]) -> Iterator[Iterator[Batch]]:
        """The batches after `step`; `idle` is called, on all ranks, while there are none. Collective."""
        ...

    def epoch(self, step: int) -> int:
        """What the history calls the epoch of a step."""
        ...

    def ends(self, step: int) -> bool:
        """Whether a stretch ends with this step."""
        ...

    def rests(self, step: int) -> bool:
        """Whether the valid split is scored after this step, if the job does not say how often."""
        ...

    def state_dict(self, step: int) -> dict[str, Any]:
        """Where it stands after a step, as plain numbers and texts."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Epochs:
    """All rows of a dataset, several times: one stretch."""

    def __init__(self, loader: Loader, total_steps: int) -> None:
        self.total_steps: int | None = total_steps
        self._total = total_steps
        self._loader = loader

    def stretches(self, step: int, idle: Callable[[], None]) -> Iterator[Iterator[Batch]]:
        if step < self._total:
            yield self._batches(step)

    def _batches(self, step: int) -> Iterator[Batch]:
        while step < self._total:
            epoch, start = divmod(step, self._loader.steps)
            for batch in self._loader.epoch(epoch, start):
                yield batch
                step = batch.slots.step
                if step == self._total:
                    return

    def epoch(self, step: int) -> int:
        return (step - 1) // self._loader.steps

    def ends(self, step: int) -> bool:
        return step == self._total

    def rests(self, step: int) -> bool:
        return step % self._loader.steps == 0

    def state_dict(self, step: int) -> dict[str, Any]:
        return {}  # a function of the step alone

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class Arrivals:
    """The partitions of a watched folder, each once, in order; each is a stretch, and an epoch.

    Args:
        loader: makes the loader of an encoded partition.
        idle_seconds: without a partition after which training ends; None waits for ever.
        max_steps: where it ends at the latest.
    """

    def __init__(
        self,
        partitions: Partitions,
        loader: Callable[[Path], Loader],
        world: World,
        *,
        poll_seconds: float,
        idle_seconds: float | None,
        max_steps: int | None,
    ) -> None:
        self.total_steps = max_steps
        self._partitions = partitions
        self._loader = loader
        self._world = world
        self._poll_seconds = poll_seconds
        self._idle_seconds = idle_seconds
        self._done: list[str] = []
        self._current: str | None = None
        self._first = 0
        """Steps before the current partition's first."""
        self._end = 0
        """Its last step."""

    def stretches(self, step: int, idle: Callable[[], None]) -> Iterator[Iterator[Batch]]:
        before: str | None = None
        while self.total_steps is None or step < self.total_steps:
            if self._current is not None and step == self._end:
                self._drop(before)  # the one after it is in a checkpoint
                before = self._current
                self._done.append(before)
                self._current = None
            if self._current is None:
                name = self._wait(idle)
                if name is None:
                    break
                self._current, self._first = name, step
            loader = self._loader(self._world.once(self._encoded))
            self._end = self._first + loader.steps
            yield self._batches(loader, step)
            step = self._last
        self._drop(before)

    @property
    def _last(self) -> int:
        """The step after which the current partition is left."""
        return self._end if self.total_steps is None else min(self._end, self.total_steps)

    def _encoded(self) -> Path:
        assert self._current is not None
        return self._partitions.encode(self._current)

    def _drop(self, name: str | None) -> None:
        """Remove what was encoded; it would be made anew if it were needed after all."""
        if name is not None and self._world.first:
            self._partitions.drop(name)

    def _wait(self, idle: Callable[[], None]) -> str | None:
        """The next partition; None if there has been none for too long."""
        since = time.monotonic()
        while True:
            name, waited = self._world.once(
                lambda: (self._partitions.next(self._done), time.monotonic() - since)
            )
            if name is not None or (self._idle_seconds is not None and waited >= self._idle_seconds):
                return name
            idle()
            time.sleep(self._poll_seconds)

    def _batches(self, loader: Loader, step: int) -> Iterator[Batch]:
        for batch in loader.epoch(len(self._done), step - self._first):
            if step == self._last:
                return
            step += 1
            yield replace(batch, slots=replace(batch.slots, step=step))

    def epoch(self, step: int) -> int:
        return len(self._done)

    def ends(self, step: int) -> bool:
        return step == self._last

    def rests(self, step: int) -> bool:
        return step == self._last

    def state_dict(self, step: int) -> dict[str, Any]:
        return {"done": list(self._done), "current": self._current, "first": self._first, "end": self._end}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._done, self._current = list(state["done"]), state["current"]
        self._first, self._end = state["first"], state["end"]
