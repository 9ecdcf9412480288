"""One job on this machine, through TorchX's `local_cwd`: started, watched, stopped; nothing is left behind.

Process tree: sparta - agent (torchrun, a session of its own) - ranks (a session each). Ctrl-C reaches
only `sparta`, which passes it on once as SIGTERM; the tethers see to the rest.

    <run>/logs/<verb>/rank-0.log ...   stdout and stderr of each rank, appended
    <run>/logs/<verb>/rank-0.out       but rank 0's stdout, the results, by itself
    <run>/logs/<verb>/rank-0.beat ...  how far each rank has come
    <run>/logs/<verb>/torchrun.log     torchrun's own
    <run>/logs/<verb>/restarts.log     a line whenever the ranks were restarted, and why
    <run>/logs/<verb>/verdict.json     why the ranks failed, if they did
"""

import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparta.launcher.beats import BEATS
from sparta.launcher.forward import Forward
from sparta.launcher.rank import log_path
from sparta.launcher.request import NEW_RUN
from sparta.launcher.run_directory import run_of
from sparta.launcher.stopped import StopMarker, Stopped
from sparta.launcher.tether import PARENT
from sparta.launcher.verdict import Logs, Verdict
from sparta.models.errors import ConfigError

TERMINAL = "SPARTA_TERMINAL"
"""Environment variable of the ranks: columns of the user's terminal; absent when there is none."""

MEMORY_AND_THREADS = {
    # Large pages for large tensors: without them the kernel clears every activation's pages anew.
    "THP_MEM_ALLOC_ENABLE": "1",
    # Spins that GNU OpenMP's threads wait for work before they sleep; its default takes the core for ever.
    "GOMP_SPINCOUNT": "10000",
    # MB beyond which pinned memory, such as a checkpoint's copies, is not rounded up to a power of two.
    "PYTORCH_CUDA_ALLOC_CONF": "pinned_max_round_threshold_mb:16",
}
"""What torch and OpenMP read when they load; what that brings: benchmarks/README.md."""

POLL_SECONDS = 0.05
SHUTDOWN = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
SHUTDOWN_SECONDS = 8
"""For the ranks to end after SIGTERM; TorchX kills torchrun itself, and so the ranks, after 10."""


@dataclass(frozen=True)
class LocalJob:
    """What to run: `python -m module arguments` on every rank."""

    name: str
    ranks: int
    module: str
    arguments: tuple[str, ...]
    logs: Path
    verbose: bool = False
    restarts: int = 0
    agent: str = "sparta.launcher.agent"

    def command(self) -> list[str]:
        """Arguments of Python for the agent."""
        torchrun = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(self.ranks)]
        torchrun += ["--max-restarts", str(self.restarts)]
        # The ranks open their own logs, so torchrun's go nowhere.
        torchrun += ["--log-dir", os.devnull, "-m", "sparta.launcher.rank"]
        logs = str(self.logs)  # as the user is to read it
        return ["-m", self.agent, logs, *torchrun, logs, self.module, *self.arguments]

    def environment(self) -> dict[str, str]:
        """What the ranks see beyond our own environment."""
        environment = {
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, _cores() // self.ranks))),
            SHUTDOWN: os.environ.get(SHUTDOWN, str(SHUTDOWN_SECONDS)),
            **{name: os.environ.get(name, value) for name, value in MEMORY_AND_THREADS.items()},
            # TorchX would parse this file while torchrun writes it.
            "TORCHELASTIC_ERROR_FILE": "",
            PARENT: str(os.getpid()),
            BEATS: str(self.logs.absolute()),
        }
        if sys.stderr.isatty():
            environment[TERMINAL] = str(columns())
        return environment

    def app(self) -> Any:
        """The job as TorchX takes it."""
        from torchx.specs import AppDef, Role

        # TorchX substitutes its own ${names} in arguments; `$$` is a dollar sign.
        arguments = [argument.replace("$", "$$") for argument in self.command()]
        role = Role("ranks", "", entrypoint=sys.executable, args=arguments, env=self.environment())
        return AppDef(self.name, roles=[role])


RANK_MEMORY = 400 << 20
"""Bytes that a rank takes before it holds any table: Python and its libraries."""


def check_memory(ranks: int) -> None:
    """Refuse more ranks than can live here; they would take other processes with them.

    Raises:
        ConfigError: there is no memory even for empty ranks.
    """
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) << 10
    except (OSError, ValueError, KeyError):
        return  # another system than Linux
    if ranks > 1 and ranks * RANK_MEMORY > free:
        raise ConfigError(
            f"{ranks} ranks take {ranks * RANK_MEMORY / 2**30:.0f} GiB before they hold a row, and "
            f"{free / 2**30:.0f} GiB are free here; use fewer, or a cluster"
        )


class Stop:
    """The first signal that asked us to stop, if any, and whether the user cannot wait."""

    asked: signal.Signals | None = None
    insisted = False
    """Ctrl-C after a first signal."""

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take Ctrl-C, SIGTERM and a closed terminal; what is ignored (nohup, `&`) stays ignored."""
        wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        heard = [number for number in wanted if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, self._take) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _take(self, number: int, frame: object) -> None:
        self.insisted = self.insisted or (self.asked is not None and number == signal.SIGINT)
        self.asked = self.asked or signal.Signals(number)


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    code: int
    verdict: Verdict | None = None
    stopped: Stopped | None = None
    """Told to stop, it did so in order, and can be resumed."""


def run(job: LocalJob) -> Outcome:
    """Run a job to its end, showing rank 0 and, on stderr, the reason of a failure."""
    logs, forward, stop = Logs(job.logs), Forward(job.logs, verbose=job.verbose), Stop()
    marker = StopMarker(run_of(job.logs))
    with _runner() as runner, tempfile.TemporaryDirectory(prefix="sparta-") as scratch, stop.listening():
        # TorchX's own files (empty logs, SUCCESS, which it writes for failed jobs too) have no reader.
        handle = runner.run(job.app(), "local_cwd", {"log_dir": scratch})
        try:
            succeeded = _watch(runner, handle, forward, stop)
        except BaseException:
            runner.cancel(handle)
            raise
        stopped = marker.read() if job.name == NEW_RUN else None
        if stopped or (stop.asked and not succeeded):
            forward.finish(failed=True)
            return Outcome(128 + (stop.asked or signal.SIGTERM), stopped=stopped)
        if succeeded:
            forward.finish(failed=False)
            return Outcome(0)
        verdict = logs.left()
        forward.finish(failed=True, told=verdict.line)
        if job.verbose and verdict.log != log_path(job.logs, 0):
            print(logs.last_lines(verdict.log), file=sys.stderr)
        print(verdict.line, file=sys.stderr)
        return Outcome(verdict.code, verdict)


def _watch(runner: Any, handle: str, forward: Forward, stop: Stop) -> bool:
    """Show rank 0 until the job has ended; whether it succeeded."""
    from torchx.specs import AppState, is_terminal

    while True:
        # The state first: what was written before the end is shown by the pump after it.
        state = runner.status(handle).state
        forward.pump()
        if is_terminal(state):
            return bool(state == AppState.SUCCEEDED)
        if stop.asked:
            _cancel(runner, handle, forward, stop)
            return False
        time.sleep(POLL_SECONDS)


def _cancel(runner: Any, handle: str, forward: Forward, stop: Stop) -> None:
    """Send SIGTERM, once more if the user insists, which kills the ranks (launcher/agent.py); wait for the end."""
    print("stopping ...", file=sys.stderr)
    cancels = [threading.Thread(target=runner.cancel, args=(handle,))]
    cancels[0].start()
    while any(cancel.is_alive() for cancel in cancels):
        forward.pump()
        time.sleep(POLL_SECONDS)  # two signals without a pause between them are one
        if stop.insisted and len(cancels) == 1:
            print("killing ...", file=sys.stderr)
            cancels.append(threading.Thread(target=runner.cancel, args=(handle,)))
            cancels[1].start()


@contextmanager
def _runner() -> Iterator[Any]:
    """TorchX with the one scheduler it needs here, its log messages silenced."""
    log = logging.getLogger("torchx")
    log.addHandler(logging.NullHandler())
    log.propagate = False
    from torchx.runner import Runner
    from torchx.schedulers.local_scheduler import create_scheduler

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with Runner("sparta", {"local_cwd": create_scheduler}) as runner:
        runner.scheduler_run_opts("local_cwd")  # makes the scheduler, which installs handlers of its own
        for number, handler in before.items():
            signal.signal(number, handler)
        yield runner


def _cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def columns() -> int:
    """Width of the terminal that stderr is."""
    columns = os.environ.get("COLUMNS", "")
    return int(columns) if columns.isdecimal() else os.get_terminal_size(2).columns or 80
