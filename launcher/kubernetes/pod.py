"""One pod template: what the `kubernetes:` section and the restricted security standard make of TorchX's.

Everything is added to what is there; variables that the container has already keep their values.
"""

from typing import Any

from sparta.launcher.kubernetes.command import option, ranks_per_node, run_name, verb
from sparta.launcher.kubernetes.grammar import gibibytes
from sparta.launcher.request import NEW_RUN
from sparta.service.config import Job
from sparta.service.kubernetes_settings import ProbeSettings, TolerationSettings

Object = dict[str, Any]

JOB_LABEL = "sparta.dev/job"
RUN_LABEL = "sparta.dev/run"

METRICS_PORT = "SPARTA_METRICS_PORT"
"""Variable with the port of local rank 0, where the job leaves the choice (`metrics.port: 0`)."""
RENDEZVOUS_PORT = 29500
GPU = "nvidia.com/gpu"

SCRATCH = "/tmp"
WRITABLE = {
    # getpass finds no name for a user whom the image does not know.
    "USER": "sparta",
    "HOME": SCRATCH,
    "NUMBA_CACHE_DIR": f"{SCRATCH}/numba",
    "TRITON_CACHE_DIR": f"{SCRATCH}/triton",
    "MPLCONFIGDIR": f"{SCRATCH}/matplotlib",
    "XDG_CACHE_HOME": f"{SCRATCH}/cache",
}
"""The root file system is read-only, so what libraries would write into a home directory goes here."""

PROBE_SECONDS = 15


def labels(job: Job, run: str) -> dict[str, str]:
    """Labels of every object of a run; ours win."""
    return {**job.kubernetes.labels, JOB_LABEL: job.name, RUN_LABEL: run}


def run_of(template: Object, job: Job) -> str:
    """The run that a pod works on: the name of its run directory, else the job's."""
    return run_name(template["spec"]["containers"][0]["command"], job.name)


def finish_pod(template: Object, job: Job) -> None:
    """Finish a pod template with one container, as TorchX renders it, in place."""
    asked, spec = job.kubernetes, template["spec"]
    (container,) = spec["containers"]
    run = run_of(template, job)
    _merge(template, "metadata", labels=labels(job, run), annotations=dict(asked.annotations))
    spec |= {
        "terminationGracePeriodSeconds": asked.grace(job.checkpoint.grace_seconds),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": asked.user,
            "runAsGroup": asked.user,
            "fsGroup": asked.user,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    _merge(spec, nodeSelector=dict(asked.node_selector))
    if asked.tolerations:
        spec["tolerations"] = [*spec.get("tolerations", []), *map(_toleration, asked.tolerations)]
    if asked.service_account:
        spec["serviceAccountName"] = asked.service_account
    _finish_container(container, job)
    _finish_volumes(spec, container, job)


def _finish_container(container: Object, job: Job) -> None:
    command = container["command"]
    container["securityContext"] = {
        **(container.get("securityContext") or {}),
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    variables = container.setdefault("env", [])
    there = {variable["name"]: variable.get("value", "") for variable in variables}
    ports: list[Object] = []
    if option(command, "--rdzv-endpoint"):
        ports.append({"name": "rdzv", "containerPort": RENDEZVOUS_PORT})
    port = job.metrics.port
    first = port or int(there.get(METRICS_PORT) or 0)
    if port is not None and first and verb(command) == NEW_RUN:
        ranks = ranks_per_node(command, _gpus(container))
        ports += [{"name": f"metrics-{rank}", "containerPort": first + rank} for rank in range(ranks)]
        if job.kubernetes.probes.enabled:
            container |= _probes(job.kubernetes.probes)
    container["ports"] = [*container.get("ports", []), *ports]
    # torchrun gives up after a minute; another node may still be pulling the image.
    seconds = job.kubernetes.probes.startup_seconds
    added = {**WRITABLE, "PET_RDZV_CONF": f"join_timeout={seconds},read_timeout={seconds}"}
    secrets = job.kubernetes.secret_env
    variables += ({"name": name, "value": added[name]} for name in added if name not in there)
    variables += ({"name": name, "valueFrom": _secret(secrets[name])} for name in secrets)


def _finish_volumes(spec: Object, container: Object, job: Job) -> None:
    volumes, mounts = spec.setdefault("volumes", []), container.setdefault("volumeMounts", [])
    for volume in volumes:
        shm = volume.get("emptyDir")
        if shm is not None and shm.get("medium") == "Memory" and job.kubernetes.shm_gb:
            shm["sizeLimit"] = gibibytes(job.kubernetes.shm_gb)
    volumes.append({"name": "scratch", "emptyDir": {"sizeLimit": gibibytes(job.kubernetes.scratch_gb)}})
    mounts.append({"name": "scratch", "mountPath": SCRATCH})


def _probes(asked: ProbeSettings) -> Object:
    """Liveness begins only when training has begun, and bears a restart of the ranks inside the pod."""

    def ask(path: str, failures: int) -> Object:
        return {
            "httpGet": {"path": path, "port": "metrics-0"},
            "periodSeconds": PROBE_SECONDS,
            "timeoutSeconds": 5,
            "failureThreshold": failures,
        }

    return {
        "startupProbe": ask("/readyz", -(-asked.startup_seconds // PROBE_SECONDS)),
        "readinessProbe": ask("/readyz", 2),
        "livenessProbe": ask("/healthz", -(-asked.down_seconds // PROBE_SECONDS)),
    }


def _toleration(asked: TolerationSettings) -> Object:
    said = asked.model_dump(exclude_none=True)
    if "seconds" in said:
        said["tolerationSeconds"] = said.pop("seconds")
    return said


def _secret(source: str) -> Object:
    name, key = source.split("/")
    return {"secretKeyRef": {"name": name, "key": key}}


def _gpus(container: Object) -> int:
    return int(container.get("resources", {}).get("limits", {}).get(GPU, 0))


def _merge(into: Object, *path: str, **sections: dict[str, str]) -> None:
    """Add to the mappings at a place; sections without keys are left out."""
    for key in path:
        into = into.setdefault(key, {})
    for name, added in sections.items():
        merged = {**(into.get(name) or {}), **added}
        if merged:
            into[name] = merged
        else:
            into.pop(name, None)
