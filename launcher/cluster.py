"""Jobs that a cluster's scheduler runs: rendered, sent, looked at and cancelled through TorchX.

TorchX speaks in log records, warnings and tracebacks; here its failures become one line.
"""

import json
import logging
import re
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparta.models.errors import ConfigError, SpartaError

if TYPE_CHECKING:
    from torchx.specs import AppDef

    from sparta.service.config import Job

SCHEDULERS = ("kubernetes", "slurm", "kueue")
SESSION = "sparta"
WAIT_SECONDS = 2.0
"""Between two looks at a job."""

ENDED = ("SUCCEEDED", "FAILED", "CANCELLED")

_CFG = re.compile(r"(?:^|,)([\w-]+)=")


def configuration(scheduler: str, words: Sequence[str]) -> dict[str, Any]:
    """The scheduler's options from `key=value[,key=value]` words; values may hold commas.

    Raises:
        ConfigError: a word of another form, or a key that the scheduler does not know.
    """
    with runner(scheduler) as torchx:
        options = torchx.scheduler_run_opts(scheduler)
    known = [name for name, _ in options]
    found: dict[str, Any] = {}
    for word in words:
        first, *parts = _CFG.split(word)
        if first or not parts:
            raise ConfigError(f"--cfg {word}: not of the form key=value")
        for key, value in zip(parts[::2], parts[1::2], strict=True):
            if key not in known:
                raise ConfigError(f"--cfg {key}: unknown to {scheduler}; it knows {', '.join(known)}")
            found[key] = value
    return found


def render(app: "AppDef", job: "Job", scheduler: str, options: dict[str, Any]) -> str:
    """What would be sent, as YAML, or as the script for Slurm.

    Raises:
        ConfigError: an option is missing, or what was rendered is no object that a cluster would run.
    """
    import yaml

    with runner(scheduler, job) as torchx:
        request = torchx.dryrun(app, scheduler, options).request
    if scheduler == "slurm":
        return str(request.materialize())
    objects = request.objects if hasattr(request, "objects") else [request.resource]
    return yaml.safe_dump_all(objects, sort_keys=False, width=110)


def send(app: "AppDef", job: "Job", scheduler: str, options: dict[str, Any]) -> str:
    """Submit a job; its handle.

    Raises:
        ConfigError: as `render`, or the scheduler cannot be reached or refuses it.
    """
    if "job_dir" in options:
        Path(options["job_dir"]).mkdir(parents=True, exist_ok=True)
    with runner(scheduler, job) as torchx:
        return str(torchx.run(app, scheduler, options))


def status(handle: str) -> Any:
    """TorchX's AppStatus of a job.

    Raises:
        ConfigError: there is no such job.
    """
    found = known(handle)
    if found is None:
        raise ConfigError(f"{handle}: no such job; `sparta list -s {scheduler_of(handle)}` shows them")
    return found


def known(handle: str) -> Any:
    """The same, or None where the scheduler knows no such job."""
    with runner(scheduler_of(handle)) as torchx:
        found = torchx.status(handle)
    # Of a job that Slurm does not know TorchX says that its state is unknown.
    unknown = found is not None and found.state.name == "UNKNOWN" and scheduler_of(handle) == "slurm"
    return None if unknown else found


def cancel(handle: str) -> str:
    """Tell the scheduler to end a job that has not ended, and wait until it has; how that was."""
    state = status(handle).state.name
    if state in ENDED:
        return str(state)
    with runner(scheduler_of(handle)) as torchx:
        torchx.cancel(handle)
        while (found := torchx.status(handle)) is not None and found.state.name not in ENDED:
            time.sleep(WAIT_SECONDS)
    # Kubernetes' schedulers cancel a job by removing it.
    return found.state.name if found else "CANCELLED"


def jobs(scheduler: str, namespace: str | None = None) -> list[tuple[str, str]]:
    """Handles and states of the scheduler's jobs; `namespace` is the kube config's if None."""
    with runner(scheduler, namespace=namespace) as torchx:
        return [(app.app_handle, app.state.name) for app in torchx.list(scheduler)]


def show_logs(handle: str, *, follow: bool = False, rank: int | None = None) -> None:
    """Print the lines of all machines, which begin with their rank, or those of one rank.

    Raises:
        ConfigError: no such job, or it has no machine yet.
    """
    from torchx.schedulers.api import Stream

    scheduler, roles = scheduler_of(handle), status(handle).roles
    if not roles:
        raise ConfigError(f"{handle}: no machine has started yet; see `sparta status {handle}`")
    # Slurm keeps the two streams in files of their own.
    streams = (Stream.STDOUT, Stream.STDERR) if scheduler == "slurm" else (None,)
    machines = [(role.role, number) for role in roles for number in range(max(1, len(role.replicas)))]
    failures: list[Exception] = []

    def show(torchx: Any, role: str, number: int, stream: Any) -> None:
        try:
            for line in torchx.log_lines(handle, role, number, should_tail=follow, streams=stream):
                if rank is None or line.startswith(f"[{rank}] "):
                    print(line.rstrip("\n") + "\n", end="", flush=True)
        except Exception as error:
            failures.append(error)

    with runner(scheduler) as torchx:
        threads = [
            threading.Thread(target=show, args=(torchx, *machine, stream), daemon=True)
            for machine in machines
            for stream in streams
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]


def wait(handle: str) -> int:
    """Show rank 0 until the job has ended; 0 if it succeeded, else 1. Ctrl-C cancels it."""
    try:
        while (state := status(handle).state.name) not in ("RUNNING", *ENDED):
            time.sleep(WAIT_SECONDS)
        show_logs(handle, follow=True, rank=0)
        while (state := status(handle).state.name) not in ENDED:
            time.sleep(WAIT_SECONDS)
    except KeyboardInterrupt:
        print("cancelling ...", file=sys.stderr)
        cancel(handle)
        return 130
    return 0 if state == "SUCCEEDED" else 1


def scheduler_of(handle: str) -> str:
    """The scheduler that a handle names.

    Raises:
        ConfigError: it names none of ours.
    """
    scheduler = handle.partition("://")[0]
    form = r"\w+://\w*/\d+" if scheduler == "slurm" else r"\w+://\w*/[^:/]+:[^:/]+"
    if scheduler not in SCHEDULERS or not re.fullmatch(form, handle):
        raise ConfigError(
            f"{handle}: no handle; one is what `sparta submit` prints, such as kueue://sparta/namespace:job"
        )
    return scheduler


@contextmanager
def runner(scheduler: str, job: "Job | None" = None, namespace: str | None = None) -> Iterator[Any]:
    """TorchX's runner, without its talk; what goes wrong inside is a ConfigError."""
    for name in ("torchx", "urllib3", "kubernetes"):
        log = logging.getLogger(name)
        log.addHandler(logging.NullHandler())
        log.propagate = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from torchx.runner import Runner

            from sparta.launcher.schedulers import factories

            with Runner(SESSION, factories(job, namespace)) as torchx:
                yield torchx
        except (SpartaError, KeyboardInterrupt, BrokenPipeError):
            raise
        except Exception as error:
            raise ConfigError(f"{scheduler}: {' '.join(_reason(error).split())}") from error


def _reason(error: Exception) -> str:
    """The failure of a scheduler in one line."""
    match error:
        case FileNotFoundError(filename=str(command)):
            return f"no {command} in the PATH; submit where the scheduler's commands are"
        case subprocess.CalledProcessError(cmd=[command, *_], returncode=code):
            return f"{command} ended with exit code {code}"
    if hasattr(error, "cfg_key"):
        return f"--cfg {error.cfg_key}=... is missing; the scheduler needs it"
    if hasattr(error, "status") and hasattr(error, "body"):
        try:
            said = json.loads(error.body)["message"]
        except (ValueError, KeyError, TypeError):
            said = getattr(error, "reason", "")
        return f"the API server says {error.status}: {said}"
    reason = str(error) or type(error).__name__
    if type(error).__module__.startswith("urllib3"):
        return f"no answer from the API server ({reason}); is the kube config's cluster up?"
    return reason
