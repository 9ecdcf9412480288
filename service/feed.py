"""Where a trainer's batches come from, in one order whatever the ranks: epochs of a dataset, or what arrives.

A feed gives stretches: batches one after the other, with work due when the last of them is done. Where it stands
is a function of the step, since batches are made ahead of the step that takes them.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from sparta.models.batch import Batch
from sparta.models.errors import DataError
from sparta.service.data.loader import Loader
from sparta.service.data.partitions import PartitionError, Partitions
from sparta.service.world import World

SLICE_SECONDS = 0.2
"""Between two calls of `idle`, at most: so long a signal may wait to be heard."""


def unheard(_: str) -> None:
    """Tell nobody."""


class Feed(Protocol):
    """What the trainer needs."""

    total_steps: int | None
    """Where training ends at the latest; None if nobody knows."""

    def stretches(
        self, step: int, idle: Callable[[], None], note: Callable[[str], None] = unheard
    ) -> Iterator[Iterator[Batch]]:
        """The batches after `step`. Collective.

        Args:
            idle: called again and again while there are none, on all ranks equally often.
            note: told of what is left out, on all ranks.
        """
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

    @property
    def passed_over(self) -> int:
        """Files that were left out because they are bad."""
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

    passed_over = 0

    def stretches(
        self, step: int, idle: Callable[[], None], note: Callable[[str], None] = unheard
    ) -> Iterator[Iterator[Batch]]:
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
        poll_seconds: between two looks into the folder.
        idle_seconds: without a partition after which training ends; None waits for ever.
        max_steps: where it ends at the latest.
        bad_partitions: of the whole run that are passed over, and not tried again when it goes on.
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
        bad_partitions: int = 0,
    ) -> None:
        self.total_steps = max_steps
        self._partitions = partitions
        self._loader = loader
        self._world = world
        self._poll_seconds = poll_seconds
        self._idle_seconds = idle_seconds
        self._bad_partitions = bad_partitions
        self._done: list[str] = []
        self._bad: list[str] = []
        """Those of the done that were passed over."""
        self._current: str | None = None
        self._first = 0
        """Steps before the current partition's first."""
        self._end = 0
        """Its last step."""

    def stretches(
        self, step: int, idle: Callable[[], None], note: Callable[[str], None] = unheard
    ) -> Iterator[Iterator[Batch]]:
        before: str | None = None
        while self.total_steps is None or step < self.total_steps:
            if self._current is not None and step == self._end:
                self._drop(before)  # the one after it is in a checkpoint
                before = self._current
                self._done.append(before)
                self._current = None
            try:
                name = self._current or self._wait(idle)
                if name is None:
                    break
                folder = self._encoded(name, idle)
            except PartitionError as error:
                self._pass_over(error, note)
                self._current, self._end = None, step
                continue
            if self._current is None:  # not before it is encoded, or a stop meanwhile would take it for done
                self._current, self._first = name, step
            loader = self._loader(folder)
            self._end = self._first + loader.steps
            yield self._batches(loader, step)
            step = self._last
        self._drop(before)

    @property
    def passed_over(self) -> int:
        return len(self._bad)

    @property
    def _last(self) -> int:
        """The step after which the current partition is left."""
        return self._end if self.total_steps is None else min(self._end, self.total_steps)

    def _encoded(self, name: str, idle: Callable[[], None]) -> Path:
        """The folder that the first rank makes of a partition in a thread, while all ranks are idle.

        If `idle` raises, the thread is left alone. It is no daemon, as one killed inside Arrow can take the process
        down with it: when the main thread ends, the encoder's own pool takes no more work, which ends it too.
        """
        if self._world.first:
            thread = ThreadPoolExecutor(1, "sparta-partition")
            encoding = thread.submit(self._partitions.encode, name)
            thread.shutdown(wait=False)
        while not self._world.once(lambda: bool(wait([encoding], SLICE_SECONDS).done)):
            idle()
        return self._world.once(lambda: encoding.result())

    def _pass_over(self, error: PartitionError, note: Callable[[str], None]) -> None:
        """Count a bad partition as done.

        Raises:
            DataError: there are more than the limit.
        """
        limit = self._bad_partitions
        if len(self._bad) == limit:
            raise DataError(
                f"{error}; or pass over more than {limit} bad files with tolerate.bad_partitions"
            ) from error
        self._bad.append(error.name)
        self._done.append(error.name)
        note(f"passed over: {error} ({len(self._bad)} of {limit} tolerated)")

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
            slices = math.ceil(self._poll_seconds / SLICE_SECONDS)
            for _ in range(slices):  # counted, for the ranks' clocks differ
                idle()
                time.sleep(self._poll_seconds / slices)

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
        return {
            "done": list(self._done),
            "passed_over": list(self._bad),
            "current": self._current,
            "first": self._first,
            "end": self._end,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._done, self._current = list(state["done"]), state["current"]
        self._first, self._end = state["first"], state["end"]
        self._bad = list(state.get("passed_over", ()))  # checkpoints of before it was there
