"""The HTTP endpoint of one rank: what Prometheus scrapes and what a cluster's probes ask.

/metrics   in Prometheus' text format, or OpenMetrics for who asks for it
/healthz   200 while training gets on, 503 with the reason when it does not
/readyz    200 once training has begun
/status    JSON for people
"""

import json
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from sparta.models.errors import ConfigError

HOST = "SPARTA_METRICS_HOST"
"""Environment variable: the address to listen on, which the launcher sets on a cluster; loopback without it."""
PORT = "SPARTA_METRICS_PORT"
"""Environment variable: what stands for port 0 of the job."""

Answer = tuple[int, str, bytes]
"""Status, content type, body."""


class Endpoint:
    """Serves in a thread, from `start` to `close`.

    Args:
        health: what is wrong with this rank, if anything.
        ready: whether it trains.
        status: for people.
        port: 0 for a free one.
    """

    def __init__(
        self,
        registry: Collector,
        *,
        health: Callable[[], str | None],
        ready: Callable[[], bool],
        status: Callable[[], Mapping[str, Any]],
        host: str,
        port: int,
    ) -> None:
        self._registry = registry
        self._health = health
        self._ready = ready
        self._status = status
        self._scraped = threading.Event()
        self._since = math.inf  # a scrape counts from then on
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                began = time.monotonic()
                code, kind, body = endpoint.answer(self.path, self.headers.get("Accept", ""))
                with suppress(BrokenPipeError, ConnectionResetError):  # who asked has left
                    self.send_response(code)
                    self.send_header("Content-Type", kind)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                    if self.path == "/metrics" and began >= endpoint._since:
                        endpoint._scraped.set()

            def log_message(self, format: str, *args: Any) -> None:
                """Probes ask every few seconds: nobody wants to read that."""

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"metrics.port: {host}:{port} cannot be listened on ({error}); "
                "give another, 0 for a free one, or null for no endpoint"
            ) from error
        self._server.daemon_threads = True
        # A run waits for this thread at its end: by default up to half a second.
        serve = partial(self._server.serve_forever, poll_interval=0.05)
        self._thread = threading.Thread(target=serve, name="sparta-metrics", daemon=True)

    @property
    def port(self) -> int:
        """The port, also where any free one was asked for."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def close(self) -> None:
        """Answer no more."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()

    def wait_for_scrape(self, seconds: float) -> bool:
        """Until /metrics was asked for once more, at most so long; whether it was."""
        self._scraped.clear()
        self._since = time.monotonic()
        return self._scraped.wait(seconds)

    def answer(self, path: str, accept: str) -> Answer:
        """What a GET is answered."""
        match path.partition("?")[0]:
            case "/metrics":
                encode, kind = choose_encoder(accept)
                return 200, kind, encode(self._registry)
            case "/healthz":
                wrong = self._health()
                return (503, "text/plain", f"{wrong}\n".encode()) if wrong else (200, "text/plain", b"ok\n")
            case "/readyz":
                ready = self._ready()
                return (200, "text/plain", b"ok\n") if ready else (503, "text/plain", b"not training yet\n")
            case "/status":
                return 200, "application/json", (json.dumps(self._status()) + "\n").encode()
        return 404, "text/plain", b"there are /metrics /healthz /readyz /status\n"


def listen_on(port: int, local_rank: int) -> tuple[str, int]:
    """(host, port) of a rank: the job's port, or the launcher's for 0, and ranks of a machine side by side."""
    base = port or int(os.environ.get(PORT, "0"))
    return os.environ.get(HOST, "127.0.0.1"), base + local_rank if base else 0
