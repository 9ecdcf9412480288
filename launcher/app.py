"""A job as TorchX takes it, for any of its schedulers: one role of equal machines, torchrun on each of them.

The job file travels as text in SPARTA_JOB. In a container the environment is the container's, and Python the
image's; without one (`local_cwd`, `slurm`) it is this Python, in this folder, and the environment stands in the
command, because Slurm splits values at commas.
"""

import argparse
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from sparta.launcher.local import MEMORY_AND_THREADS, SHUTDOWN
from sparta.launcher.run_directory import RUNS
from sparta.models.errors import ConfigError, SpartaError
from sparta.models.storage import is_url
from sparta.service.job_text import ENVIRONMENT

if TYPE_CHECKING:
    from torchx.specs import AppDef, Resource

    from sparta.service.config import Job

ROLE = "ranks"
JOB_VARIABLE = "SPARTA_JOB"
CONTAINER_RUNS = Path("/runs")
"""Where a container is to have storage that all machines share; the rest of its file system may be read-only."""
METRICS_HOST, METRICS_PORT = "SPARTA_METRICS_HOST", "SPARTA_METRICS_PORT"
RENDEZVOUS_PORT = 29500
FIRST_METRICS_PORT = 9400
PREFIX = "TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE"
OURS = (JOB_VARIABLE, METRICS_HOST, METRICS_PORT, PREFIX, SHUTDOWN)
"""Variables that nobody else may set."""


@dataclass(frozen=True)
class Machines:
    """On what a job runs."""

    j: str | None = None
    """`[[min:]nodes x]ranks`: machines, ranks on each; what is not said is 1 and the job's train.ranks."""
    resource: str | None = None
    """Name of what each machine has; if not said, as many GPUs as ranks where the job's device is cuda."""
    cpu: int = 0
    gpu: int = 0
    memory_mb: int = 0
    """In place of the resource's own, where above 0."""
    image: str | None = None
    """Of the container; None for no container."""
    mounts: Sequence[str] = ()
    """As TorchX writes them: `type=volume`, `src=claim`, `dst=/data`, `readonly`, ..."""
    environment: Mapping[str, str] = field(default_factory=dict)
    retries: int = 0
    """Times that the scheduler starts all machines again."""


def training(
    path: Path,
    words: Sequence[str],
    run: str | None,
    machines: Machines,
    fresh: Callable[[str], Path] = RUNS.joinpath,
) -> tuple["AppDef", "Job"]:
    """`sparta train` of a job file, going on where the run directory holds a checkpoint; and the job.

    Args:
        words: further arguments of `sparta train`; its `--set` edit the job here.
        run: the run directory, which all machines reach; if None, in a container `/runs/<name>`, else what
            `fresh` makes of the job's name.

    Raises:
        ConfigError: bad job, resource, mount or number of ranks.
    """
    from sparta.service.arguments import parser
    from sparta.service.config import check_job
    from sparta.service.job_text import read_text, write_text

    overrides, rest = _split(words)
    parser().parse_args(
        ["train", str(path), *rest]
    )  # what is wrong is to be known before it waits in a queue
    raw = read_text(path, overrides)
    # Variables and relative paths in it are resolved where it runs.
    job, text = check_job(raw, str(path)), write_text(raw)
    directory = run or str(fresh(job.name) if machines.image is None else CONTAINER_RUNS / job.name)
    arguments = ["train", f"{ENVIRONMENT}{JOB_VARIABLE}", "--run-dir", directory, "--resume", *rest]
    app = on_ranks(
        arguments,
        name=job.name,
        machines=machines,
        ranks=job.train.ranks,
        cuda=job.train.device == "cuda",
        restarts=job.tolerate.restarts,
        grace_seconds=job.checkpoint.grace_seconds,
        environment={JOB_VARIABLE: text},
    )
    if machines.image is not None and not _mounted(directory, app):
        raise ConfigError(
            f"run directory {directory}: on no storage that outlives a container and is shared by all; mount a claim "
            f"there: type=volume,src=CLAIM,dst={CONTAINER_RUNS if run is None else Path(run).parent}"
        )
    return app, job


def unmounted(job: "Job", app: "AppDef") -> str | None:
    """The job's dataset, where a container finds it only if the image brings it along."""
    path = job.data.path
    return None if is_url(path) or "$" in path or _mounted(path, app) else path


def _mounted(path: str, app: "AppDef") -> bool:
    mounts = app.roles[0].mounts
    places = [PurePosixPath(place) for mount in mounts if (place := getattr(mount, "dst_path", None))]
    return any(PurePosixPath(path).is_relative_to(place) for place in places)


@contextmanager
def for_torchx() -> Iterator[None]:
    """What is wrong ends in one line where TorchX calls."""
    from torchx.specs.finder import ComponentValidationException

    try:
        yield
    except SpartaError as error:
        raise ComponentValidationException(str(error)) from error


def on_ranks(
    arguments: Sequence[str],
    *,
    name: str,
    machines: Machines,
    ranks: int = 1,
    cuda: bool = False,
    restarts: int = 0,
    grace_seconds: float = 8.0,
    environment: Mapping[str, str] | None = None,
) -> "AppDef":
    """A verb of the service on every rank, `ranks` where `machines` does not say.

    Args:
        cuda: ask for as many GPUs as ranks unless `machines` names a resource.
        restarts: of the ranks of a machine, before the scheduler restarts all.
        grace_seconds: for the ranks to end after SIGTERM.

    Raises:
        ConfigError: bad resource, mount or number of ranks.
    """
    from torchx.specs import macros

    least, most, per_node = _nodes(machines.j or "1x", ranks)
    resource = _resource(machines, per_node if cuda else 0)
    if (cuda or resource.gpu) and resource.gpu < per_node:
        raise ConfigError(
            f"{per_node} ranks on a machine with {resource.gpu} GPUs: each needs one; give fewer ranks, "
            "or a resource with as many"
        )
    own = {
        PREFIX: "[${rank}] ",
        "LOGLEVEL": "WARNING",
        "OMP_NUM_THREADS": str(max(1, int(resource.cpu) // per_node)),
        SHUTDOWN: str(math.ceil(grace_seconds)),
        "PYTHONUNBUFFERED": "1",
        **MEMORY_AND_THREADS,
        **_metrics(machines, most),
        **(environment or {}),
    }
    # The macro is the name of a variable, in which the scheduler says who is the first; launcher/node.py reads it.
    endpoint = f"{ENVIRONMENT}{macros.rank0_env}:{RENDEZVOUS_PORT}" if most > 1 else "localhost:0"
    command = ["-m", "sparta.launcher.node", "--nnodes", f"{least}:{most}", "--nproc-per-node", str(per_node)]
    command += ["--rdzv-backend", "c10d", "--rdzv-id", macros.app_id, "--rdzv-endpoint", endpoint]
    command += ["--max-restarts", str(restarts), "--tee", "3", *_service(arguments)]
    app = _app(name, command, own, machines, resource)
    app.roles[0].num_replicas = most
    app.roles[0].min_replicas = least if least < most else None
    return app


def alone(arguments: Sequence[str], *, name: str, machines: Machines) -> "AppDef":
    """A verb of the service in one process.

    Raises:
        ConfigError: bad resource or mount.
    """
    return _app(name, _service(arguments), {"PYTHONUNBUFFERED": "1"}, machines, _resource(machines, 0))


def _service(arguments: Sequence[str]) -> list[str]:
    return ["-m", "sparta.service", *map(_plain, arguments)]


def _app(
    name: str, command: Sequence[str], own: Mapping[str, str], machines: Machines, resource: "Resource"
) -> "AppDef":
    """Python with some arguments on one machine."""
    from torchx.specs import AppDef, Role, parse_mounts

    for name in sorted({*OURS} & {*machines.environment}):
        raise ConfigError(f"environment variable {name}: tells the ranks what they are; drop it")
    if machines.retries < 0:
        raise ConfigError(f"retries {machines.retries}: not a number of starts; give 0 or more")
    environment = {key: _plain(value) for key, value in {**own, **machines.environment}.items()}
    words = ["python", *command]
    if machines.image is None:
        assignments = [f"{key}={value}" for key, value in environment.items()]
        words, environment = ["env", *assignments, sys.executable, *command], {}
    try:
        mounts = parse_mounts(list(machines.mounts))
    except (KeyError, ValueError) as error:
        reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else error
        raise ConfigError(
            f"mount {','.join(machines.mounts)}: {reason}; write type=volume,src=CLAIM,dst=PATH"
        ) from error
    role = Role(
        ROLE,
        machines.image or "",
        entrypoint=words[0],
        args=words[1:],
        env=environment,
        resource=resource,
        mounts=mounts,
        max_retries=machines.retries,
    )
    return AppDef(name, roles=[role])


def _nodes(j: str, ranks: int) -> tuple[int, int, int]:
    """Least and most machines, and the ranks of each, `ranks` if `j` does not say."""
    match = re.fullmatch(r"(?:(?:(\d+):)?(\d+)x)?(\d+)?", j)
    if match is None or not j:
        raise ConfigError(f"-j {j}: not of the form 8, 2x8 or 1:2x8 (least:most machines x ranks of each)")
    least, most, per_node = int(match[1] or match[2] or 1), int(match[2] or 1), int(match[3] or ranks)
    if not 1 <= least <= most or per_node < 1:
        raise ConfigError(f"-j {j}: needs a machine and a rank, and no more machines at least than at most")
    return least, most, per_node


def _resource(machines: Machines, gpus: int) -> "Resource":
    """What each machine has; `gpus` it needs if that is not said."""
    from torchx.specs import Resource, named_resources

    from sparta.launcher.resources import RESOURCES

    name = machines.resource
    if name is None:
        gpus = machines.gpu or gpus
        enough = (size for size in (1, 2, 4, 8) if size >= gpus)
        name = f"sparta_gpu_{next(enough, gpus)}" if gpus else "sparta_cpu"
    try:
        named = RESOURCES[name]() if name in RESOURCES else named_resources[name]
    except KeyError:
        raise ConfigError(
            f"{name}: no named resource; known are {', '.join(RESOURCES)}; cores, GPUs and memory can be said apart"
        ) from None
    return Resource(
        cpu=machines.cpu or named.cpu,
        gpu=machines.gpu or named.gpu,
        memMB=machines.memory_mb or named.memMB,
        capabilities=named.capabilities,
        devices=named.devices,
    )


def _metrics(machines: Machines, nodes: int) -> dict[str, str]:
    """Where the ranks serve their metrics: a container has its ports for itself, a machine has not."""
    if machines.image is not None:
        return {METRICS_HOST: "0.0.0.0", METRICS_PORT: str(FIRST_METRICS_PORT)}
    return {METRICS_HOST: "0.0.0.0"} if nodes > 1 else {}


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The values of `--set`, and the other words."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--set", action="append", default=[])
    try:
        known, rest = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise ConfigError(f"{error.argument_name}: {error.message}") from error
    return known.set, rest


def _plain(text: str) -> str:
    """A text in which TorchX substitutes nothing."""
    return text.replace("$", "$$")
