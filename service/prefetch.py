"""Batches on the device, each on its way before the step that needs it.

While a step is under way the next batch is copied and its ids travel to the ranks that hold their rows; on a
GPU both happen on a stream of their own. TorchRec's pipelines take a batch once, a two-pass step needs it twice.
"""

from collections.abc import Callable, Iterator, Sequence

import torch

from sparta.models.batch import Batch
from sparta.service.step import unheard
from sparta.sharding.rows.bags import Arrived, RowsCollection


class Prefetcher:
    """Iterates over batches; `ahead`, called in a step, begins the next.

    Args:
        batches: on the host.
        collections: where the ids go; none if the engine sends them in the forward pass.
        phase: told what begins: data_wait, input_dist.
    """

    def __init__(
        self,
        batches: Iterator[Batch],
        device: torch.device,
        collections: Sequence[RowsCollection] = (),
        phase: Callable[[str], None] = unheard,
    ) -> None:
        self._batches = batches
        self._phase = phase
        self._device = device
        self._collections = collections
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._next: tuple[Batch, list[tuple[RowsCollection, Arrived]]] | None = None

    def __iter__(self) -> "Prefetcher":
        return self

    def __next__(self) -> Batch:
        if self._next is None:
            self.ahead()
        if self._next is None:
            raise StopIteration
        (batch, arrived), self._next = self._next, None
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            for tensor in (batch.dense, batch.labels, batch.slots.weights):
                tensor.record_stream(current)
            batch.sparse.record_stream(current)
            for _, one in arrived:
                one.record_stream(current)
        for collection, one in arrived:
            collection.accept(one)
        return batch

    def ahead(self) -> None:
        """Begin the next batch, if there is one and it is not begun; collective."""
        if self._next is not None:
            return
        self._phase("data_wait")
        host = next(self._batches, None)
        if host is None:
            return
        self._phase("input_dist")
        with torch.cuda.stream(self._stream):  # does nothing without one
            batch = host.to(self._device)
            wanted = [collection for collection in self._collections if collection.takes(batch.sparse)]
            self._next = batch, [(collection, collection.send(batch.sparse)) for collection in wanted]
