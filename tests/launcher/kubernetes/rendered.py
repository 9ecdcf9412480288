"""Jobs as `sparta submit` would render them, without its command line."""

import warnings
from typing import Any

from sparta.launcher.kubernetes import finish, indexed_job
from sparta.service.config import Job, parse_job

IMAGE = "registry.example/sparta:0.1.0"
JOB = {
    "name": "clicks",
    "data": {"path": "/data/clicks", "batch_size": 4096},
    "model": {"name": "deepfm"},
    "train": {"ranks": 8, "device": "cuda"},
}


def job(**kubernetes: Any) -> Job:
    """A job with a `kubernetes:` section."""
    return parse_job({**JOB, "kubernetes": kubernetes}, "job.yaml")


def app(
    *,
    nodes: int = 2,
    ranks: int = 8,
    gpu: bool = True,
    least: int | None = None,
    retries: int = 0,
    verb: str = "train",
    name: str = "clicks",
) -> Any:
    """A TorchX AppDef: torchrun with `ranks` on each node, the verb of the service on every rank."""
    from torchx.specs import AppDef, Resource, Role, VolumeMount, macros

    torchrun = ["-m", "torch.distributed.run", "--nnodes", str(nodes), "--nproc-per-node", str(ranks)]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"env:{macros.rank0_env}:29500"]
    service = ["-m", "sparta.service", verb, "env:SPARTA_JOB", "--run-dir", "/runs/clicks-7", "--resume"]
    role = Role(
        "ranks",
        IMAGE,
        entrypoint="python",
        args=[*torchrun, *service],
        env={"SPARTA_JOB": job().dump(), "SPARTA_METRICS_HOST": "0.0.0.0", "SPARTA_METRICS_PORT": "9400"},
        resource=Resource(cpu=32, gpu=ranks if gpu else 0, memMB=256 * 1024),
        num_replicas=nodes,
        min_replicas=least,
        max_retries=retries,
        mounts=[VolumeMount("sparta-data", "/data", True), VolumeMount("sparta-runs", "/runs")],
    )
    return AppDef(name, roles=[role])


def volcano(what: Job | None = None, **options: Any) -> Any:
    """The Volcano job of `app(**options)`, finished."""
    from torchx.schedulers.kubernetes_scheduler import app_to_resource

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of retries with a Volcano of long ago
        resource = app_to_resource(app(**options), "sparta", None)
    return finish(resource, what or job(), namespace="sparta")


def indexed(what: Job | None = None, **options: Any) -> list[Any]:
    """The indexed job of `app(**options)` and what goes with it."""
    return indexed_job(app(**options), what or job(), queue="sparta", namespace="sparta")


def template(thing: Any) -> Any:
    """The first pod template of a job."""
    return thing["spec"]["tasks"][0]["template"] if "tasks" in thing["spec"] else thing["spec"]["template"]


def container(thing: Any) -> Any:
    """The one container of the first pod template of a job."""
    (only,) = template(thing)["spec"]["containers"]
    return only
