"""Batches of a prepared dataset, in an order that depends on neither the ranks nor the past.

`order.py` says which row stands where, `rowgroups.py` decodes and checks; here slices of permuted row
groups are copied straight into the memory of a KeyedJaggedTensor, in a background thread. A row group
stays in memory from its first to its last use by this rank: about two a stream, however large the data.
"""

# B = slots of this rank, F = categorical features, D = dense columns, T = tasks

import queue
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchrec import KeyedJaggedTensor

from sparta.models.batch import Batch, Flaw, Slots
from sparta.models.errors import ConfigError
from sparta.models.schema import Schema
from sparta.service.background import gpu_here, step_back
from sparta.service.data.order import Order, Piece
from sparta.service.data.rowgroups import Block, RowGroups

# All four mixtures of int32 and int64 run, sharded or not. Ids are int64, as kernels that number the rows
# of several tables in one range need them; lengths and offsets int32, half the bytes to exchange.
_IDS, _LENGTHS = torch.int64, torch.int32

_POLL_SECONDS = 0.1

Ready = queue.Queue[Batch | BaseException | None]
"""What the thread has read: batches, then None or what went wrong."""


class Loader:
    """One rank's share of every global batch of one split.

    Args:
        folder: a dataset made by `sparta prepare`, local or at a URL that fsspec reads.
        batch_size: samples of a global batch; a multiple of `streams`.
        streams: places of the epoch that every batch is drawn from, equally.
        shuffle: False keeps the order of the files within a stream; streams=1 is then the file's order.
        prefetch: batches kept ready by the background thread.
        pin: put batches in memory that a GPU copies from while it computes.
        skip_bad_rows: rows that break a rule, or cannot be decoded, are padding slots where they stood, and
            counted in `Batch.skipped`; else the first one is an error.

    Raises:
        ConfigError: sizes that do not fit each other, or a URL whose kind is unknown here.
        DataError: a split that is missing, damaged, or at odds with the schema.
    """

    def __init__(
        self,
        folder: str | Path,
        schema: Schema,
        split: str,
        *,
        batch_size: int,
        streams: int = 16,
        rank: int = 0,
        ranks: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        prefetch: int = 4,
        pin: bool = False,
        skip_bad_rows: bool = False,
    ) -> None:
        if prefetch < 1:
            raise ConfigError(f"data: prefetch is {prefetch}; it must be at least 1")
        self._schema = schema
        self._sizes = {"batch_size": batch_size, "streams": streams, "rank": rank, "ranks": ranks}
        self._seed = seed
        self._shuffle = shuffle
        self._prefetch = prefetch
        self._ready: Ready = queue.Queue()
        self._groups = RowGroups(folder, schema, split, skip_bad_rows=skip_bad_rows)
        order = self._order(0)
        self.steps = order.steps
        """Global batches an epoch."""
        self._slots = order.slots
        self._first = order.first
        self._pin = pin
        self._keys = [feature.name for feature in schema.sparse]
        self._runs = _runs(schema)
        # Without padding and lists every batch has these; consumers must not write to them.
        features = len(self._keys)
        self._ones = self._new((features * self._slots,), _LENGTHS)
        self._ones.fill_(1)
        self._counting = self._new((features * self._slots + 1,), _LENGTHS)
        self._counting.copy_(torch.arange(features * self._slots + 1))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches start, start + 1, ... of one epoch; closing the iterator ends its thread.

        Raises:
            ConfigError: `start` is not in [0, steps].
            DataError: (while iterating) a damaged file, or a value that breaks a rule.
        """
        if not 0 <= start <= self.steps:
            raise ConfigError(f"data: start {start} is outside the epoch's {self.steps} batches")
        self._ready = queue.Queue(self._prefetch)
        return _prefetched(self._batches(epoch, start), self._ready, gpu_here())

    @property
    def waiting(self) -> int:
        """Batches read ahead and not taken yet."""
        return self._ready.qsize()

    def _order(self, epoch: int) -> Order:
        return Order(self._groups.rows, **self._sizes, seed=self._seed, epoch=epoch, shuffle=self._shuffle)

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """The batches, made in the thread that asks for them."""
        order = self._order(epoch)
        held: dict[int, Block] = {}
        spare: list[NDArray[np.int32]] = []  # memory of row groups that are done with
        for index in range(start, order.steps):
            parts = []
            for piece in order.pieces(index):
                if piece.group not in held:
                    memory = spare.pop() if spare else None
                    held[piece.group] = self._groups.read(piece.group, order.rows_of(piece.group), memory)
                parts.append((piece, held[piece.group]))
            batch = self._assemble(epoch * order.steps + index + 1 if self._shuffle else 0, parts)
            spare += [held.pop(piece.group).memory for piece, _ in parts if piece.last]
            yield batch

    def _assemble(self, step: int, parts: Sequence[tuple[Piece, Block]]) -> Batch:
        B, schema = self._slots, self._schema
        dense = self._new((B, len(schema.dense)), torch.float32)
        labels = self._new((B, len(schema.labels)), torch.float32)
        weights = self._new((B,), torch.float32)
        into_dense, into_labels, into_weights = dense.numpy(), labels.numpy(), weights.numpy()
        if sum(piece.rows for piece, _ in parts) < B:
            for array in (into_dense, into_labels, into_weights):
                array.fill(0)
        D, T = dense.shape[1], labels.shape[1]
        for piece, block in parts:
            slots = slice(piece.slot, piece.slot + piece.rows)
            floats = block.floats[:, piece.first : piece.first + piece.rows]
            into_dense[slots] = floats[:D].T
            into_labels[slots] = floats[D : D + T].T
            into_weights[slots] = floats[D + T] if schema.weight else 1
        sparse = self._sparse(parts)
        bad, skipped = _bad(parts)
        if skipped:
            for array in (into_dense, into_labels, into_weights):
                array[bad] = 0
            sparse = self._emptied(sparse, bad)
        slots_of_batch = Slots(seed=self._seed, step=step, first=self._first, weights=weights)
        return Batch(sparse=sparse, dense=dense, labels=labels, slots=slots_of_batch, skipped=skipped)

    def _sparse(self, parts: Sequence[tuple[Piece, Block]]) -> KeyedJaggedTensor:
        """Ids by feature, then by slot; a padding slot's bags are empty."""
        B, F = self._slots, len(self._keys)
        rows = sum(piece.rows for piece, _ in parts)
        if rows == B and all(isinstance(run, slice) for run in self._runs):
            values = self._new((F * B,), _IDS)
            self._fill_values(values.numpy(), parts)
            return self._jagged(values, self._ones, self._counting, [B] * F)
        lengths = self._new((F * B,), _LENGTHS)
        self._fill_lengths(lengths.numpy().reshape(F, B), parts)
        values = self._new((int(lengths.numpy().sum()),), _IDS)
        self._fill_values(values.numpy(), parts)
        return self._uneven(values, lengths)

    def _emptied(self, sparse: KeyedJaggedTensor, bad: NDArray[np.intp]) -> KeyedJaggedTensor:
        """The same with empty bags in these slots."""
        real_FB = np.ones((len(self._keys), self._slots), np.bool_)
        real_FB[:, bad] = False
        real, before = real_FB.reshape(-1), sparse.lengths().numpy()
        kept = sparse.values().numpy()[np.repeat(real, before)]
        values, lengths = self._new(kept.shape, _IDS), self._new(before.shape, _LENGTHS)
        values.numpy()[:] = kept
        np.multiply(before, real, out=lengths.numpy())
        return self._uneven(values, lengths)

    def _uneven(self, values: Tensor, lengths: Tensor) -> KeyedJaggedTensor:
        offsets = self._new((len(lengths) + 1,), _LENGTHS)
        offsets.numpy()[0] = 0
        np.cumsum(lengths.numpy(), out=offsets.numpy()[1:])
        per_key = lengths.numpy().reshape(len(self._keys), self._slots).sum(axis=1).tolist()
        return self._jagged(values, lengths, offsets, per_key)

    def _jagged(
        self, values: Tensor, lengths: Tensor, offsets: Tensor, per_key: list[int]
    ) -> KeyedJaggedTensor:
        return KeyedJaggedTensor(
            self._keys, values, lengths=lengths, offsets=offsets, stride=self._slots, length_per_key=per_key
        )

    def _fill_lengths(self, into_FB: NDArray[np.int32], parts: Sequence[tuple[Piece, Block]]) -> None:
        into_FB.fill(0)
        for piece, block in parts:
            slots = slice(piece.slot, piece.slot + piece.rows)
            feature = 0
            for run in self._runs:
                if isinstance(run, slice):
                    width = run.stop - run.start
                    into_FB[feature : feature + width, slots] = 1
                else:
                    width = 1
                    offsets = block.bags[run].offsets[piece.first : piece.first + piece.rows + 1]
                    into_FB[feature, slots] = np.diff(offsets)
                feature += width

    def _fill_values(self, into: NDArray[np.int64], parts: Sequence[tuple[Piece, Block]]) -> None:
        rows = sum(piece.rows for piece, _ in parts)
        at = 0
        for run in self._runs:
            if isinstance(run, slice):
                width = run.stop - run.start
                window = into[at : at + width * rows].reshape(width, rows)
                done = 0
                for piece, block in parts:
                    source = block.ids[run, piece.first : piece.first + piece.rows]
                    window[:, done : done + piece.rows] = source
                    done += piece.rows
                at += width * rows
            else:
                for piece, block in parts:
                    bags = block.bags[run]
                    begin, end = bags.offsets[[piece.first, piece.first + piece.rows]]
                    into[at : at + end - begin] = bags.values[begin:end]
                    at += end - begin

    def _new(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=self._pin)


def _bad(parts: Sequence[tuple[Piece, Block]]) -> tuple[NDArray[np.intp], dict[Flaw, int]]:
    """The slots of rows to be skipped, and how many there are for which flaw."""
    slots = [np.empty(0, np.intp)]
    skipped: dict[Flaw, int] = {}
    for piece, block in parts:
        if block.bad is None:
            continue
        begin, end = np.searchsorted(block.bad.rows, (piece.first, piece.first + piece.rows))
        slots.append(block.bad.rows[begin:end] + (piece.slot - piece.first))
        for flaw, count in zip(block.bad.flaws, np.bincount(block.bad.why[begin:end]).tolist(), strict=False):
            if count:
                skipped[flaw] = skipped.get(flaw, 0) + count
    return np.concatenate(slots), skipped


def _runs(schema: Schema) -> list[slice | int]:
    """The features in order: neighbouring single-valued ones as a slice of Block.ids, a list one as its
    index in Block.bags."""
    runs: list[slice | int] = []
    singles = multis = 0
    for feature in schema.sparse:
        if feature.multi:
            runs.append(multis)
            multis += 1
            continue
        if runs and isinstance(runs[-1], slice):
            runs[-1] = slice(runs[-1].start, singles + 1)
        else:
            runs.append(slice(singles, singles + 1))
        singles += 1
    return runs


def _prefetched(batches: Iterator[Batch], ready: Ready, gpu: int | None) -> Iterator[Batch]:
    """Run `batches` in a thread, as far ahead as `ready` has room; its errors are raised here.

    The thread is no daemon (one killed inside Arrow can take the process down with it): it ends when this
    generator is closed or collected, and by itself when the main thread has ended.
    """
    stop = threading.Event()

    def put(item: Batch | BaseException | None) -> bool:
        while not stop.is_set() and threading.main_thread().is_alive():
            try:
                ready.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False

    def produce() -> None:
        step_back(gpu)
        try:
            for batch in batches:
                if not put(batch):
                    return
            put(None)
        except BaseException as error:  # whatever it is, it belongs to the consumer
            put(error)

    thread = threading.Thread(target=produce, name="sparta-loader")
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        while not ready.empty():  # a full queue would hold the thread up to one poll
            ready.get_nowait()
        if threading.current_thread() is not thread:  # the garbage collector runs in any thread
            thread.join()
