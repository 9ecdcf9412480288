"""Ranks that serve made-up numbers for every instrument there is, in this process, on real ports."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from threading import Thread
from wsgiref.simple_server import WSGIServer

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    start_http_server,
)

from sparta.service.telemetry.instruments import PHASES, WINDOW, Instruments, Labelled

VALUES = {
    "task": ("click", "buy"),
    "split": (WINDOW, "valid"),
    "phase": PHASES,
    "table": ("user", "item"),
    "part": ("dense", "tables"),
    "column": ("price",),
    "kind": ("allocated", "reserved", "total"),
}


class FakeRank:
    """One rank; its counters rise by each call of `advance`."""

    def __init__(self, run: str, rank: int) -> None:
        inner = CollectorRegistry()
        self._instruments = Instruments(inner)
        ProcessCollector(registry=inner)
        self._instruments.build.info({"sparta": "0.1.0", "torch": "2.13.0"})
        outer = CollectorRegistry()
        outer.register(Labelled(inner, {"run": run, "rank": str(rank)}))
        self._server: WSGIServer
        self._thread: Thread
        self._server, self._thread = start_http_server(0, "127.0.0.1", outer)
        self.steps = 0

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self._server.server_port}"

    def advance(self) -> None:
        """A step: everything that counts, counts; everything that measures, measures."""
        self.steps += 1
        for instrument in vars(self._instruments).values():
            values = [VALUES[label] for label in instrument._labelnames]
            for chosen in product(*values):
                child = instrument.labels(*chosen) if chosen else instrument
                if isinstance(instrument, Counter):
                    child.inc()
                elif isinstance(instrument, Histogram):
                    child.observe(0.02)
                elif isinstance(instrument, Gauge):
                    child.set(0.5)
        self._instruments.step.set(self.steps)
        self._instruments.planned_steps.set(1e6)
        self._instruments.last_step.set_to_current_time()
        self._instruments.checkpoint_last.set(time.time() - 60)

    def close(self) -> None:
        """No longer answer; may be called again."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def fake_run(directory: Path, *, name: str, ranks: int) -> Iterator[list[FakeRank]]:
    """A run directory whose metrics.json leads to that many ranks."""
    with ExitStack() as open_ranks:
        served = []
        for rank in range(ranks):
            served.append(FakeRank(directory.name, rank))
            open_ranks.callback(served[-1].close)
        directory.mkdir(parents=True)
        targets = [{"targets": [rank.address for rank in served], "labels": {"job": "sparta", "name": name}}]
        (directory / "metrics.json").write_text(json.dumps(targets))
        yield served
