"""A real Prometheus on this machine, for as long as a `with` block: loopback only, a folder that goes with it."""

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import yaml

from sparta.launcher.tether import tether
from sparta.models.errors import ConfigError

PROGRAM = "prometheus"
START_SECONDS = 60.0
"""How long it may take to be ready."""
STOP_SECONDS = 10.0
_HOST = "127.0.0.1"
_LOG = "prometheus.log"


@dataclass(frozen=True)
class Prometheus:
    """One that answers."""

    url: str
    process: subprocess.Popen[bytes]


@contextmanager
def prometheus(config: dict[str, Any], *, port: int = 0) -> Iterator[Prometheus]:
    """Start the one on PATH with a configuration; port 0 takes a free one. At the end it and its data are gone.

    Raises:
        ConfigError: there is none, or it did not start with this configuration on this port.
    """
    program = shutil.which(PROGRAM)
    if program is None:
        raise ConfigError(
            f"{PROGRAM}: not on PATH; install it (Debian: `apt-get install prometheus`;"
            " others: https://prometheus.io/download)"
        )
    with TemporaryDirectory(prefix="sparta-prometheus-") as folder:
        home = Path(folder)
        (home / "prometheus.yml").write_text(yaml.safe_dump(config))
        url = f"http://{_HOST}:{_free(port)}"
        command = [
            program,
            f"--config.file={home / 'prometheus.yml'}",
            f"--storage.tsdb.path={home / 'data'}",
            f"--web.listen-address={url.removeprefix('http://')}",
            "--log.level=warn",
        ]
        with (home / _LOG).open("wb") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is ours to hear: it is stopped by the end of the block
                preexec_fn=lambda: tether(signal.SIGTERM),
            )
        try:
            _wait(url, process, home / _LOG)
            yield Prometheus(url, process)
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until it is ready."""
    end = time.monotonic() + START_SECONDS
    # An end of the process is looked for first: on a port that another one holds, that one would answer.
    while process.poll() is None:
        try:
            with urlopen(f"{url}/-/ready", timeout=1):
                return
        except (URLError, OSError):
            if time.monotonic() > end:
                raise ConfigError(
                    f"{PROGRAM}: not ready after {START_SECONDS:.0f} s at {url}; try again"
                ) from None
            time.sleep(0.05)
    said = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
    raise ConfigError(f"{PROGRAM}: does not start at {url} ({said[-1]}); try another --port")


def _free(port: int) -> int:
    """A port that can be listened at: the one that is wanted, or any for 0."""
    with socket.socket() as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as Prometheus: old connections do not count
        try:
            probe.bind((_HOST, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or "not 0 to 65535"
            raise ConfigError(f"--port {port}: {reason}; give another, or none for a free one") from None
        found: int = probe.getsockname()[1]
        return found
