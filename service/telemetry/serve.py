"""The endpoints of a run: each rank serves its own, the first tells Prometheus where they all are.

`<run>/metrics.json` is a file_sd file: one target a rank, with the labels that the scrape is to add. It goes when
the run ends in order, or is refused before it trains; of one that was killed or failed it stays, so that somebody
misses the ranks.
"""

import json
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

from prometheus_client import push_to_gateway
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from sparta.models.errors import SpartaError
from sparta.service.heartbeat import Heartbeat
from sparta.service.run import write_atomically
from sparta.service.run_settings import MetricsSettings
from sparta.service.telemetry.endpoint import Endpoint, listen_on
from sparta.service.telemetry.telemetry import Telemetry
from sparta.service.world import World
from sparta.sharding.collectives import gather

JOB = "sparta"
"""What Prometheus calls the job; ours is in the label `name`."""

PUSH_SECONDS = 5.0


class Lasting(Collector):
    """The numbers that stay true: a Pushgateway keeps them for ever, and times would grow old and raise alarms."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def collect(self) -> Iterator[Metric]:
        self._telemetry.refresh()
        for metric in self._telemetry.own.collect():
            if metric.name.startswith("sparta_") and not metric.name.endswith("_timestamp_seconds"):
                yield metric


class Serving:
    """A context in which this rank answers. Entering it is collective.

    Args:
        targets: the file_sd file.
        labels: of every target, beside job and rank.

    Raises:
        ConfigError: the port is taken; on that rank only.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        settings: MetricsSettings,
        heartbeat: Heartbeat,
        world: World,
        *,
        targets: Path,
        labels: Mapping[str, str],
    ) -> None:
        self._telemetry = telemetry
        self._settings = settings
        self._heartbeat = heartbeat
        self._world = world
        self._targets = targets
        self._labels = dict(labels)
        self._endpoint: Endpoint | None = None

    def __enter__(self) -> "Serving":
        if self._settings.port is None:
            return self
        host, port = listen_on(self._settings.port, self._world.rank % self._world.local_ranks)
        self._endpoint = Endpoint(
            self._telemetry.registry,
            health=self._wrong,
            ready=lambda: self._heartbeat.begun,
            status=lambda: self._telemetry.status,
            host=host,
            port=port,
        )
        self._endpoint.start()
        name = host if host.startswith("127.") else socket.gethostname()
        addresses = gather((f"{name}:{self._endpoint.port}", socket.gethostname()))
        if self._world.first:
            found = [
                {"targets": [address], "labels": self._labels_of(rank, machine)}
                for rank, (address, machine) in enumerate(addresses)
            ]
            write_atomically(self._targets, json.dumps(found, indent=1) + "\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._endpoint is None:
            return
        if kind is not None and issubclass(kind, SpartaError):
            self._wait()  # what ended the run is in the numbers too
        self._endpoint.close()
        refused = kind is not None and not self._heartbeat.begun
        if (kind is None or refused) and self._world.first:
            self._targets.unlink(missing_ok=True)

    def linger(self) -> None:
        """Training has ended and its result is written: let its last numbers be seen, as the job says."""
        self._wait()
        gateway = self._settings.pushgateway
        if gateway is None:
            return
        where = {**self._labels, "rank": str(self._world.rank)}
        try:
            push_to_gateway(gateway, JOB, Lasting(self._telemetry), where, timeout=PUSH_SECONDS)
        except Exception as error:  # whatever is wrong with the address or the gateway, the training is done
            self._telemetry.note(f"metrics.pushgateway {gateway}: not pushed ({error})")

    def _wait(self) -> None:
        if self._endpoint and self._settings.linger_seconds:
            self._endpoint.wait_for_scrape(self._settings.linger_seconds)

    def _labels_of(self, rank: int, machine: str) -> dict[str, str]:
        instance = f"{machine}/{self._labels['run']}/{rank}"  # the same after a restart, on whatever port
        return {"job": JOB, "instance": instance, "rank": str(rank), **self._labels}

    def _wrong(self) -> str | None:
        """Why /healthz fails, if it does: nothing was finished for too long."""
        quiet = self._heartbeat.quiet_seconds
        if not self._heartbeat.begun or quiet <= self._settings.healthy_seconds:
            return None
        return f"no step, evaluation or save was finished for {quiet:.0f} s"
