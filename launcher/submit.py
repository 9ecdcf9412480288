"""`sparta submit`: train a job file somewhere else, or here but on its own; prints a handle.

`local_cwd` runs what `sparta train` runs, detached from the terminal. Clusters get the job file's text, so nothing of
this machine need be there but what the job file names.
"""

import argparse
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from sparta.launcher.request import NEW_RUN
from sparta.launcher.run_directory import discard_unless_begun, first_free, given, next_free
from sparta.models.errors import ConfigError

if TYPE_CHECKING:
    from torchx.specs import AppDef

    from sparta.launcher.records import Record
    from sparta.service.config import Job

SERVICE = "sparta.service"
LOCAL = "local_cwd"
SCHEDULERS = (LOCAL, "kubernetes", "slurm", "kueue")
CONTAINERS = ("kubernetes", "kueue")


class Parser(argparse.ArgumentParser):
    """Complains in one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see `{self.prog} --help`")


def parser() -> Parser:
    """What the verb takes."""
    top = Parser(
        prog="sparta submit",
        description="Train a job file in the background here, or on a cluster. Prints the job's handle.",
        epilog="What follows `--` goes to `sparta train` as it is, such as `-- --from RUN`.",
    )
    top.add_argument("job", type=Path, help="JOB.yaml")
    top.add_argument("-s", "--scheduler", choices=SCHEDULERS, default=LOCAL, help="default: %(default)s")
    top.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="edit the file before it is checked"
    )
    top.add_argument("--ranks", type=_positive, help="of each machine; default: train.ranks of the job")
    top.add_argument(
        "--nodes", type=_nodes, default="1", help="machines: 2, or at least and at most as in 1:2"
    )
    top.add_argument(
        "--run-dir",
        help="default: the first free of runs/<name>, runs/<name>-2, ..., in a container /runs/<name>; "
        "machines share it, and go on with what is there",
    )
    top.add_argument(
        "--resume", action="store_true", help="local_cwd: go on with what the run directory holds"
    )
    top.add_argument("--dry-run", action="store_true", help="print what would be sent, as YAML, and stop")
    top.add_argument(
        "--wait", action="store_true", help="show rank 0 until the end; exit with the job's code"
    )
    cluster = top.add_argument_group("on a cluster")
    cluster.add_argument("--image", help="container image; kubernetes and kueue need one")
    cluster.add_argument(
        "--cfg",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of the scheduler: queue, namespace, ...",
    )
    cluster.add_argument(
        "--resource",
        metavar="NAME",
        help="of each machine: sparta_cpu (8 cores, 32 GiB), or sparta_gpu_1, _2, _4, _8 (20 cores and 200 GiB a GPU); "
        "default: a GPU a rank if train.device is cuda",
    )
    cluster.add_argument(
        "--cpu",
        type=_positive,
        default=0,
        metavar="CORES",
        help="of each machine, in place of the resource's",
    )
    cluster.add_argument("--gpu", type=_positive, default=0, metavar="GPUS", help="likewise")
    cluster.add_argument("--memory-gb", type=_positive, default=0, metavar="GIB", help="likewise")
    cluster.add_argument(
        "--mount",
        action="append",
        default=[],
        metavar="M",
        help="type=volume,src=CLAIM,dst=PATH[,readonly], or type=bind,src=HOST_PATH,dst=PATH",
    )
    cluster.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="of the ranks")
    cluster.add_argument(
        "--retries", type=_natural, default=0, help="starts of all machines after one failed"
    )
    return top


def submit(argv: Sequence[str], *, service: str) -> int:
    """Run the verb; 0, or with --wait the job's exit code.

    Raises:
        ConfigError: in one line.
    """
    arguments, words = _read(argv)
    if arguments.scheduler == LOCAL:
        return _locally(arguments, words, service)
    return _on_a_cluster(arguments, words)


def hand_over(argv: Sequence[str], *, service: str) -> str:
    """Submit a job as the verb does, which prints nothing; its handle.

    Raises:
        ConfigError: in one line.
    """
    arguments, words = _read(argv)
    if arguments.scheduler == LOCAL:
        job, train, run = _here(arguments, words, service)
        return _start(job, train, run, service).handle
    return _send(arguments, words)


def _read(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The verb's arguments, and what `sparta train` is given as it is."""
    words = list(argv)
    at = words.index("--") if "--" in words else len(words)
    return parser().parse_args(words[:at]), words[at + 1 :]


def _locally(arguments: argparse.Namespace, words: list[str], service: str) -> int:
    """Start `sparta train` in a session of its own."""
    job, train, run = _here(arguments, words, service)
    if arguments.dry_run:
        return _print_local(train, arguments.ranks or job.train.ranks, run)
    record = _start(job, train, run, service, watched=arguments.wait)
    print(record.handle, file=sys.stderr if arguments.wait else sys.stdout, flush=True)
    if not arguments.wait:
        return 0
    from sparta.launcher import detached

    return detached.wait(record)


def _here(arguments: argparse.Namespace, words: list[str], service: str) -> tuple["Job", list[str], Path]:
    """The job, the arguments of `sparta train`, and the run directory."""
    from sparta.service.config import load_job

    for option in ("image", "cfg", "resource", "cpu", "gpu", "memory_gb", "mount", "env", "retries"):
        if getattr(arguments, option):
            raise ConfigError(
                f"--{option.replace('_', '-')}: local_cwd runs on this machine as it is; drop it, or choose -s"
            )
    if arguments.nodes != "1":
        raise ConfigError(f"--nodes {arguments.nodes}: local_cwd has one machine; give --ranks alone")
    job = load_job(arguments.job, arguments.set)
    ranks = arguments.ranks or job.train.ranks
    if service == SERVICE:
        _check(job, ["train", str(arguments.job), *words], ranks)
    run = _directory(arguments, job)
    train = [str(arguments.job), "--run-dir", str(run)]
    train += [word for override in arguments.set for word in ("--set", override)]
    train += ["--ranks", str(arguments.ranks)] if arguments.ranks else []
    train += ["--resume"] if arguments.resume else []
    return job, [*train, *words], run


def _start(job: "Job", train: list[str], run: Path, service: str, *, watched: bool = False) -> "Record":
    from sparta.launcher import detached
    from sparta.launcher.records import Record, new_id

    record = Record(
        id=new_id(job.name),
        verb=NEW_RUN,
        arguments=tuple(train),
        run=str(run.absolute()),
        cwd=str(Path.cwd()),
        service=service,
        started=time.time(),
    )
    return detached.start(record, watched=watched)


def _check(job: "Job", train: Sequence[str], ranks: int) -> None:
    """Find now what would end the job in its first seconds, when nobody looks."""
    from sparta.launcher.local import check_memory
    from sparta.models.schema import load_schema
    from sparta.models.storage import is_url
    from sparta.service.arguments import parser

    source = parser().parse_args(train).source
    if source and not is_url(source) and not Path(source).exists():
        raise ConfigError(f"--from {source}: no such run, checkpoint or export")
    if not is_url(job.data.path):
        load_schema(job.data.path)
    check_memory(ranks)


def _print_local(train: list[str], ranks: int, run: Path) -> int:
    import yaml

    command = [sys.executable, "-m", "sparta.launcher", NEW_RUN, *train]
    said = {"scheduler": LOCAL, "command": command, "cwd": str(Path.cwd()), "ranks": ranks, "run": str(run)}
    print(yaml.safe_dump(said, sort_keys=False), end="")
    return 0


def _directory(arguments: argparse.Namespace, job: "Job") -> Path:
    """Where the run goes; nothing is made in a dry run."""
    if arguments.run_dir:
        if not arguments.dry_run:
            given(Path(arguments.run_dir), resume=arguments.resume)
        return Path(arguments.run_dir)
    if arguments.resume:
        raise ConfigError("--resume needs --run-dir: which run to go on with")
    return first_free(job.name) if arguments.dry_run else next_free(job.name)


def _on_a_cluster(arguments: argparse.Namespace, words: list[str]) -> int:
    from sparta.launcher import cluster

    if arguments.dry_run:
        app, job, options = _there(arguments, words, first_free)
        print(cluster.render(app, job, arguments.scheduler, options), end="")
        return 0
    handle = _send(arguments, words)
    print(handle, file=sys.stderr if arguments.wait else sys.stdout, flush=True)
    return cluster.wait(handle) if arguments.wait else 0


def _send(arguments: argparse.Namespace, words: list[str]) -> str:
    """Hand the job to the scheduler; its handle. A run directory made for it goes again if it is refused."""
    from sparta.launcher import cluster

    made: list[Path] = []

    def fresh(name: str) -> Path:
        made.append(next_free(name))
        return made[0]

    try:
        app, job, options = _there(arguments, words, fresh)
        return cluster.send(app, job, arguments.scheduler, options)
    except ConfigError:
        for run in made:
            discard_unless_begun(run)
        raise


def _there(
    arguments: argparse.Namespace, words: list[str], fresh: Callable[[str], Path]
) -> tuple["AppDef", "Job", dict[str, Any]]:
    """The job as TorchX takes it, the job, and the scheduler's options."""
    from sparta.launcher import cluster
    from sparta.launcher.app import Machines, training, unmounted

    scheduler = arguments.scheduler
    if scheduler in CONTAINERS and not arguments.image:
        raise ConfigError(
            f"--image is missing: {scheduler} runs containers; build one of launcher/Dockerfile"
        )
    if scheduler not in CONTAINERS and (arguments.image or arguments.mount):
        raise ConfigError(f"--image, --mount: {scheduler} runs no containers; drop them")
    options = cluster.configuration(scheduler, arguments.cfg)
    least, _, most = arguments.nodes.rpartition(":")
    if not 1 <= int(least or most) <= int(most):
        raise ConfigError(
            f"--nodes {arguments.nodes}: needs a machine, and no more at least than at most, as in 1:2"
        )
    overrides = [word for override in arguments.set for word in ("--set", override)]
    machines = Machines(
        j=f"{arguments.nodes}x{arguments.ranks or ''}",
        resource=arguments.resource,
        cpu=arguments.cpu,
        gpu=arguments.gpu,
        memory_mb=1024 * arguments.memory_gb,
        image=arguments.image,
        mounts=[part for mount in arguments.mount for part in mount.split(",")],
        environment=dict(_pair(text) for text in arguments.env),
        retries=arguments.retries,
    )
    app, job = training(arguments.job, [*overrides, *words], arguments.run_dir, machines, fresh)
    if scheduler in CONTAINERS and job.kubernetes.queue:
        options.setdefault("queue", job.kubernetes.queue)
    if scheduler in CONTAINERS and (path := unmounted(job, app)):
        print(f"note: data.path {path} is on no --mount, so the image must bring it", file=sys.stderr)
    return app, job, options


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ConfigError(f"--env {text}: not of the form NAME=VALUE")
    return name, value


def _nodes(text: str) -> str:
    if not re.fullmatch(r"\d+(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of machines, such as 2 or 1:2")
    return text


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 up")
    return int(text)
