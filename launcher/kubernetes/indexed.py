"""The same job for clusters without Volcano: an indexed batch/v1 Job, which Kueue starts when there is room.

Pods are numbered and named after the job, so torchrun meets at `<job>-0`, which a headless Service makes known, ready
or not. Kueue admits all pods or none: the Job is created suspended.
"""

from typing import Any

from sparta.launcher.kubernetes.grammar import dns_label
from sparta.launcher.kubernetes.pod import RUN_LABEL, Object, finish_pod, labels, run_of
from sparta.launcher.kubernetes.volcano import REFUSALS
from sparta.models.errors import ConfigError
from sparta.service.config import Job

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PARALLELISM = "kueue.x-k8s.io/job-min-parallelism"
EQUAL_COMPLETIONS = "kueue.x-k8s.io/job-completions-equal-parallelism"
INDEX = "$(JOB_COMPLETION_INDEX)"
"""Kubernetes puts the pod's number here; torchrun's arguments and names of files may hold it."""
RANK0 = "SPARTA_RANK0_HOST"


def indexed_job(app: Any, job: Job, *, queue: str | None, namespace: str) -> list[Object]:
    """Render a TorchX AppDef of one role: the Job, its Service, and the policy that lets its pods meet.

    The Job comes first: what follows it is to go with it, see `adopt`.

    Raises:
        ConfigError: more than one role, no queue, no pod, or a mount that TorchX cannot express.
    """
    queue = queue or job.kubernetes.queue
    if not queue:
        raise ConfigError("queue: Kueue needs the name of a LocalQueue; give --cfg queue=NAME")
    if not dns_label(namespace):
        raise ConfigError(f"namespace {namespace!r} is no DNS label; give --cfg namespace=NAME")
    role, name = only_role(app), _unique_name(app.name)
    # The whole name: it stands in the pod's own /etc/hosts, so pod 0 knows itself before DNS knows it.
    host = f"{name}-0.{name}.{namespace}.svc.{job.kubernetes.cluster_domain}"
    template = pod_template(app, role, job, name=name, host=host)
    template["spec"] |= {"subdomain": name, "restartPolicy": "Never"}
    if job.kubernetes.priority_class:
        template["spec"]["priorityClassName"] = job.kubernetes.priority_class
    ours = labels(job, run_of(template, job))
    nodes, least = role.num_replicas, role.min_replicas
    elastic = least is not None and least < nodes
    metadata: Object = {"name": name, "namespace": namespace, "labels": {**ours, QUEUE_LABEL: queue}}
    if elastic:
        metadata["annotations"] = {PARALLELISM: str(least), EQUAL_COMPLETIONS: "true"}
    spec = {
        "suspend": True,
        "completionMode": "Indexed",
        "completions": nodes,
        "parallelism": nodes,
        # Pods are counted: an attempt may cost all of them, and the eviction of pod 0, where ranks meet, the others.
        "backoffLimit": (role.max_retries + 1) * nodes - 1,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {
            "rules": [
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {"action": "FailJob", "onExitCodes": {"operator": "In", "values": REFUSALS}},
            ]
        },
        "template": template,
    }
    beside = {"name": name, "namespace": namespace, "labels": ours}
    mine = {RUN_LABEL: ours[RUN_LABEL], "batch.kubernetes.io/job-name": name}
    return [
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec},
        _service(beside, mine),
        _policy({**beside}, mine),
    ]


def adopt(objects: list[Object], uid: str) -> list[Object]:
    """The objects behind the first, as its own: they are deleted with it. `uid` is what the API server gave it."""
    owner = {
        **{key: objects[0][key] for key in ("apiVersion", "kind")},
        "name": objects[0]["metadata"]["name"],
    }
    return [
        {**thing, "metadata": {**thing["metadata"], "ownerReferences": [{**owner, "uid": uid}]}}
        for thing in objects[1:]
    ]


def only_role(app: Any) -> Any:
    """The one role of an AppDef.

    Raises:
        ConfigError: there are none or several, or no pods are asked for.
    """
    if len(app.roles) != 1 or app.roles[0].num_replicas < 1:
        raise ConfigError(f"{app.name}: {len(app.roles)} roles; a job here is one role on one node or more")
    return app.roles[0]


def pod_template(app: Any, role: Any, job: Job, *, name: str, host: str) -> Object:
    """TorchX's pod of a role, the same for every node, finished; `host` is where the ranks meet."""
    from torchx.schedulers.kubernetes_scheduler import pod_labels, role_to_pod, sanitize_for_serialization
    from torchx.specs import macros

    values = macros.Values(img_root="", app_id=name, replica_id=INDEX, rank0_env=RANK0)
    ready = values.apply(role)
    ready.env = {RANK0: host, **ready.env}
    try:
        pod = role_to_pod("ranks", ready, job.kubernetes.service_account)
    except TypeError as error:
        raise ConfigError(f"{app.name}: {error}; give volumes, as type=volume,src=CLAIM,dst=PATH") from error
    template: Object = sanitize_for_serialization(pod)
    told = pod_labels(app=app, role_idx=0, role=role, replica_id=0, app_id=name)
    # The number of a pod is Kubernetes' own label here.
    template["metadata"]["labels"] = {key: value for key, value in told.items() if "replica-id" not in key}
    finish_pod(template, job)
    return template


def _unique_name(name: str) -> str:
    from torchx.schedulers.ids import make_unique
    from torchx.util.strings import normalize_str

    return str(normalize_str(make_unique(name)))


def _service(metadata: Object, mine: Object) -> Object:
    # Headless, and before the pods are ready: they become ready by meeting.
    spec = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {**mine}}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def _policy(metadata: Object, mine: Object) -> Object:
    # All ports: gloo and NCCL take what is free.
    spec = {
        "podSelector": {"matchLabels": mine},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": dict(mine)}}]}],
    }
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}
