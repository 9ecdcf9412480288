"""Which row of a split stands in which slot of which global batch: pure arithmetic, no data, no torch.

The row groups of a split, permuted, and the rows permuted within each, form one virtual sequence of N
rows. Stream s of S owns its range [s * N // S, (s + 1) * N // S), and its row p stands in slot
s * share + p % share of global batch p // share, where share = batch_size / S. The streams differ by at
most one row, so every batch but the last is full; the slots that the last one leaves empty are padding.
All of it is a function of (row groups, batch_size, streams, seed, epoch): the ranks only decide who
reads which slots, so the whole state of the data is (epoch, batch).
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from sparta.models.errors import ConfigError
from sparta.service.data.hashing import mix64

_BITS = (1 << 64) - 1


@dataclass(frozen=True)
class Piece:
    """Neighbouring rows of one permuted row group, and the neighbouring slots they fill."""

    group: int
    """Row group, counted through the files of the split."""
    first: int
    """First row, in the group's permuted order."""
    rows: int
    slot: int
    """Slot of the first row, counted within this rank's slice."""
    last: bool
    """True when this rank needs the group no more in this epoch."""


class Order:
    """One epoch as one rank sees it.

    Args:
        group_rows: rows of every row group, in file order.
        batch_size: slots of a global batch.

    Raises:
        ConfigError: a size below 1, a rank outside [0, ranks), or a batch that the streams cannot share.
    """

    def __init__(
        self,
        group_rows: Sequence[int],
        *,
        batch_size: int,
        streams: int,
        rank: int = 0,
        ranks: int = 1,
        seed: int = 0,
        epoch: int = 0,
        shuffle: bool = True,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("streams", streams), ("ranks", ranks)):
            if value < 1:
                raise ConfigError(f"data: {name} is {value}; it must be at least 1")
        if batch_size % streams:
            raise ConfigError(
                f"data: batch_size {batch_size} is no multiple of streams {streams}, so the streams cannot share "
                f"a batch equally; take batch_size {-(-batch_size // streams) * streams} or other streams"
            )
        if not 0 <= rank < ranks:
            raise ConfigError(f"data: rank {rank} is outside [0, {ranks})")
        self.slots = -(-batch_size // ranks)
        """Slots of this rank in every batch; the same on every rank."""
        self.first = rank * self.slots
        """Position of this rank's first slot in the global batch."""
        self._key = (seed, epoch)
        self._shuffle = shuffle
        self._group_rows = group_rows
        groups = self._permutation(len(group_rows), 0).tolist() if shuffle else list(range(len(group_rows)))
        self._groups: list[int] = groups
        self._starts = [0, *accumulate(group_rows[group] for group in groups)]  # in the virtual sequence
        self._share = batch_size // streams
        rows = self._starts[-1]
        self._bounds = [stream * rows // streams for stream in range(streams + 1)]
        longest = max(end - begin for begin, end in zip(self._bounds, self._bounds[1:], strict=False))
        self.steps = -(-longest // self._share)
        """Global batches of the epoch, the partial one included."""
        self._parts = self._slices(streams, batch_size)
        self._last_use = self._last_uses()

    def rows_of(self, group: int) -> NDArray[np.intp] | None:
        """The order of a row group's rows; None = as they stand in the file."""
        return self._permutation(self._group_rows[group], 1, group) if self._shuffle else None

    def pieces(self, batch: int) -> Iterator[Piece]:
        """What fills this rank's slots of one global batch, in slot order; the other slots are padding."""
        for stream, low, high in self._parts:
            position = self._bounds[stream] + batch * self._share + low
            stop = min(self._bounds[stream] + batch * self._share + high, self._bounds[stream + 1])
            slot = stream * self._share + low - self.first
            while position < stop:
                at = bisect_right(self._starts, position) - 1
                rows = min(stop, self._starts[at + 1]) - position
                group = self._groups[at]
                last = self._last_use[group] == (batch, stream)
                yield Piece(group, position - self._starts[at], rows, slot, last)
                position += rows
                slot += rows

    def _slices(self, streams: int, batch_size: int) -> list[tuple[int, int, int]]:
        """(stream, low, high): the slots [low, high) of each stream's share that are this rank's."""
        share, end = self._share, min(self.first + self.slots, batch_size)
        return [
            (stream, max(self.first - stream * share, 0), min(end - stream * share, share))
            for stream in range(min(self.first // share, streams), -(-end // share))
        ]

    def _last_uses(self) -> dict[int, tuple[int, int]]:
        """(batch, stream) in which this rank needs each of its row groups for the last time."""
        uses: dict[int, tuple[int, int]] = {}
        for stream, low, high in self._parts:
            begin, end = self._bounds[stream], self._bounds[stream + 1]
            at = bisect_right(self._starts, begin) - 1
            while at < len(self._groups) and self._starts[at] < end:
                # From the stream's last row in this group, back to the nearest one in this rank's slots.
                batch, slot = divmod(min(self._starts[at + 1], end) - 1 - begin, self._share)
                if slot < low:
                    batch, slot = batch - 1, self._share
                row = batch * self._share + min(slot, high - 1)
                if row >= max(self._starts[at] - begin, 0):
                    group = self._groups[at]
                    uses[group] = max(uses.get(group, (0, 0)), (batch, stream))
                at += 1
        return uses

    def _permutation(self, rows: int, *purpose: int) -> NDArray[np.intp]:
        """A permutation that is a function of (seed, epoch, purpose): indices sorted by a hash of themselves.

        Not numpy's generator: its streams may change with numpy's version, and a resumed run must go on in
        the order it began with. The index fills the hash's low bits, so one plain sort does it, without ties.
        """
        state = np.zeros(1, np.uint64)
        for number in (*self._key, *purpose):
            state = mix64(state ^ np.uint64(number & _BITS))
        index = np.arange(rows, dtype=np.uint64)
        low = np.uint64((1 << rows.bit_length()) - 1)
        keyed = (mix64(index ^ state) & ~low) | index
        keyed.sort()
        return (keyed & low).astype(np.intp)
