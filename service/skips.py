"""Rows that are left out of the training because they are bad: counted, named, and limited."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple
from typing import Any

from sparta.models.batch import Flaw
from sparta.models.errors import DataError
from sparta.sharding.collectives import gather

TOLD = 20
"""Places that are named, one line each; all are counted."""


def once(note: Callable[[str], None]) -> Callable[[str], None]:
    """`note` that tells each text the first time only, for what is seen again in every evaluation."""
    told: set[str] = set()

    def first(text: str) -> None:
        if text not in told:
            told.add(text)
            note(text)

    return first


class Skips:
    """The bad rows of all batches trained on so far, or of one evaluation.

    Args:
        limit: rows of all ranks that are put up with; with 0 the loader lets none pass.
        note: told of every place that is new, on all ranks.
    """

    def __init__(self, limit: int, note: Callable[[str], None]) -> None:
        self._limit = limit
        self._note = note
        self._all: Counter[Flaw] = Counter()
        self._new: Counter[Flaw] = Counter()  # of this rank, since the ranks last compared

    def add(self, skipped: Mapping[Flaw, int]) -> None:
        """Count the bad rows of this rank's share of a batch."""
        self._new.update(skipped)

    def compare(self) -> None:
        """Add up what the ranks have counted; collective.

        Raises:
            DataError: there are more than the limit, on all ranks alike.
        """
        if not self._limit:
            return
        for counted in gather(self._new):
            for flaw, rows in counted.items():
                if flaw not in self._all and len(self._all) < TOLD:
                    self._note(f"skipped: {flaw}")
                self._all[flaw] += rows
        self._new = Counter()
        if self._all.total() > self._limit:
            worst, rows = self._all.most_common(1)[0]
            raise DataError(
                f"{self._all.total()} bad rows, more than tolerate.bad_rows {self._limit}; most ({rows}) are "
                f"{worst}; prepare the dataset again with `sparta prepare`, or tolerate more"
            )

    def state_dict(self) -> list[list[Any]]:
        """The counts by place; collective."""
        self.compare()
        return [[*astuple(flaw), rows] for flaw, rows in self._all.items()]

    def load_state_dict(self, state: Iterable[Iterable[Any]]) -> None:
        """Go on from such counts."""
        self._all = Counter({Flaw(*place): rows for *place, rows in state})

    def by_column(self) -> Counter[str]:
        """Rows by the column that was bad, over all ranks."""
        columns: Counter[str] = Counter()
        for flaw, rows in self._all.items():
            columns[flaw.column] += rows
        return columns

    def summary(self) -> dict[str, Any]:
        """For result.json: rows in all, by column, and the first places."""
        columns = self.by_column()
        places = [{"place": str(flaw), "rows": rows} for flaw, rows in list(self._all.items())[:TOLD]]
        return {"rows": self._all.total(), "by_column": dict(sorted(columns.items())), "places": places}
