"""What the API server takes though it is wrong, found before it is sent. Each refusal names object, value and rule.

Sources: the validating webhooks of Volcano, which not every cluster runs, and of Kubernetes, which see no pod
template inside a custom resource.
"""

from collections.abc import Sequence
from typing import Any

from sparta.launcher.kubernetes.grammar import dns_label, dns_name, service_name
from sparta.launcher.kubernetes.pod_checks import (
    WAY_OUT_NAME,
    Object,
    check_metadata,
    check_pod,
    refuse,
    unique,
)

EVENTS = (
    "*",
    "PodFailed",
    "PodEvicted",
    "PodPending",
    "PodRunning",
    "Unknown",
    "TaskCompleted",
    "TaskFailed",
    "JobUpdated",
)
ACTIONS = (
    "AbortJob",
    "RestartJob",
    "RestartTask",
    "RestartPod",
    "RestartPartition",
    "TerminateJob",
    "CompleteJob",
    "ResumeJob",
)
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
LONGEST_NAME = 63


def lint(objects: Sequence[Object]) -> None:
    """Check what would be sent.

    Raises:
        ConfigError: the first mistake, in one line.
    """
    for thing in objects:
        kind, api, metadata = thing.get("kind"), str(thing.get("apiVersion", "")), thing.get("metadata") or {}
        name = metadata.get("name", "")
        where = f"{kind} {name}"
        if not kind or not api:
            refuse(where, api, "is no apiVersion with a kind", "give both")
        if not dns_name(name):
            refuse(f"{kind} name", name, "is no name", WAY_OUT_NAME)
        if "namespace" in metadata and not dns_label(metadata["namespace"]):
            refuse(f"{where} namespace", metadata["namespace"], "is no namespace", WAY_OUT_NAME)
        check_metadata(where, metadata)
        if kind == "Job" and api.startswith("batch.volcano.sh/"):
            _volcano(f"Volcano job {name}", name, thing["spec"])
        elif kind == "Job":
            _indexed(f"job {name}", thing, objects)
        elif kind == "Service" and not service_name(name):
            refuse("service", name, "is no name of a service", "begin with a letter")
    unique("objects", ((one["kind"], one["metadata"]["name"]) for one in objects), "name")


def _volcano(where: str, name: str, spec: Object) -> None:
    if not service_name(name):
        refuse(where, name, "is no name of a service, which its pods meet at", "begin with a letter")
    if not spec.get("queue"):
        refuse(where, spec.get("queue"), "is no queue", "give --cfg queue=NAME")
    if not dns_name(spec["queue"]):
        refuse(f"{where} queue", spec["queue"], "is no name", WAY_OUT_NAME)
    if "priorityClassName" in spec and not dns_name(spec["priorityClassName"]):
        refuse(f"{where} priorityClassName", spec["priorityClassName"], "is no name", WAY_OUT_NAME)
    tasks = spec.get("tasks") or []
    if not tasks:
        refuse(f"{where} tasks", tasks, "are none", "a job has at least one")
    unique(f"{where} task", (task.get("name") for task in tasks), "name")
    for task in tasks:
        _task(f"{where} task {task.get('name')}", name, task)
    pods = sum(task.get("replicas", 1) for task in tasks)
    _at_most(f"{where} minAvailable", spec.get("minAvailable"), pods, "tasks")
    _at_most(f"{where} minSuccess", spec.get("minSuccess"), pods, "tasks")
    _policies(f"{where} policies", spec.get("policies") or [])
    for plugin, arguments in (spec.get("plugins") or {}).items():
        if not isinstance(arguments, list):
            refuse(f"{where} plugin {plugin}", arguments, "is no list of arguments", "write [] for none")


def _task(where: str, job: str, task: Object) -> None:
    name, replicas = task.get("name", ""), task.get("replicas", 1)
    if not dns_label(name):
        refuse(where, name, "is no name of a task", WAY_OUT_NAME)
    if not isinstance(replicas, int) or replicas < 1:
        refuse(f"{where} replicas", replicas, "is no number of pods", "give 1 or more")
    _host(where, f"{job}-{name}-{replicas - 1}")
    _at_most(f"{where} minAvailable", task.get("minAvailable"), replicas, "replicas")
    _policies(f"{where} policies", task.get("policies") or [])
    check_pod(where, task.get("template") or {})


def _policies(where: str, policies: list[Object]) -> None:
    """Volcano's rules for what happens when: an unknown word is ignored, and so the job hangs."""
    events: list[str] = []
    for policy in policies:
        said = [*([policy["event"]] if policy.get("event") else []), *(policy.get("events") or [])]
        code, action = policy.get("exitCode"), policy.get("action")
        if bool(said) == (code is not None):
            refuse(where, policy, "names not exactly one of events and an exit code", "split it in two")
        for event in said:
            if event not in EVENTS:
                refuse(f"{where} event", event, "is no event of Volcano", f"known: {', '.join(EVENTS)}")
        if action not in ACTIONS:
            refuse(f"{where} action", action, "is no action of Volcano", f"known: {', '.join(ACTIONS)}")
        if code is not None and (not isinstance(code, int) or not 0 < code < 256):
            refuse(f"{where} exitCode", code, "is no exit code of a failure", "give 1 to 255")
        events += said
    unique(f"{where} event", events, "event")
    unique(f"{where} exitCode", (one["exitCode"] for one in policies if "exitCode" in one), "exit code")
    if "*" in events and len(events) > 1:
        refuse(f"{where} event", "*", "leaves nothing to other events", "drop it or them")


def _indexed(where: str, thing: Object, objects: Sequence[Object]) -> None:
    spec, metadata = thing["spec"], thing["metadata"]
    completions, template = spec.get("completions"), spec.get("template") or {}
    check_pod(where, template)
    if spec.get("completionMode") == "Indexed":
        if not isinstance(completions, int) or completions < 1 or spec.get("parallelism") != completions:
            numbers = f"{spec.get('parallelism')} of {completions}"
            refuse(
                where, numbers, "pods run at a time", "ranks wait for each other: parallelism = completions"
            )
        _host(where, f"{metadata['name']}-{completions - 1}")
        subdomain = template["spec"].get("subdomain")
        services = {one["metadata"]["name"]: one for one in objects if one.get("kind") == "Service"}
        if subdomain not in services:
            refuse(f"{where} subdomain", subdomain, "has no headless Service", "send one with the job")
    if spec.get("suspend") and not (metadata.get("labels") or {}).get(QUEUE_LABEL):
        refuse(where, "suspend", "waits for a queue that is not named", f"give the label {QUEUE_LABEL}")
    if spec.get("podFailurePolicy") and template["spec"].get("restartPolicy") != "Never":
        refuse(
            f"{where} restartPolicy", template["spec"].get("restartPolicy"), "hides exit codes", "write Never"
        )


def _host(where: str, host: str) -> None:
    if len(host) > LONGEST_NAME:
        refuse(
            where, host, f"is longer than the {LONGEST_NAME} letters of a host name", "shorten the job's name"
        )


def _at_most(where: str, value: Any, most: int, of: str) -> None:
    if value is not None and (not isinstance(value, int) or not 0 <= value <= most):
        refuse(
            where, value, f"is not between 0 and the {most} pods of its {of}", "the job would wait for ever"
        )
