"""The Volcano job that TorchX renders, finished: one task a node, all of them scheduled together or none."""

from typing import Any

from sparta.launcher.kubernetes.pod import Object, finish_pod, labels, run_of
from sparta.models.errors import ConfigError, DataError, PlanError
from sparta.service.config import Job

REFUSALS = sorted(kind.exit_code for kind in (ConfigError, DataError, PlanError))
"""Exit codes of mistakes that the next attempt would make again."""
EVICTIONS = 10
"""Restarts after evictions of a job without retries of its own."""


def finish(resource: dict[str, Any], job: Job, *, namespace: str | None = None) -> Object:
    """Apply the job file's `kubernetes:` section to the Volcano job of `runner.dryrun(...).request.resource`.

    The result is plain data, ready to be sent or printed; `resource` is left as it is.
    """
    from torchx.schedulers.kubernetes_scheduler import sanitize_for_serialization

    done: Object = sanitize_for_serialization(resource)
    spec, tasks = done["spec"], done["spec"]["tasks"]
    done["metadata"]["labels"] = labels(job, run_of(tasks[0]["template"], job))
    if namespace:
        done["metadata"]["namespace"] = namespace
    if job.kubernetes.priority_class:
        spec["priorityClassName"] = job.kubernetes.priority_class
    # Volcano gives up at the maxRetry-th restart, and evictions count like failures.
    spec["maxRetry"] = (spec.get("maxRetry") or EVICTIONS) + 1
    for task in tasks:
        finish_pod(task["template"], job)
        task["policies"] = _policies(task)
    return done


def _policies(task: Object) -> list[Object]:
    """The first that fits counts: what would fail again ends it, then TorchX's retries, else the gang's end."""
    refusals = [{"exitCode": code, "action": "TerminateJob"} for code in REFUSALS]
    if task.get("policies"):
        return [*refusals, *task["policies"]]
    # An evicted pod is not the job's fault: all begin again and resume.
    evicted = {"event": "PodEvicted", "action": "RestartJob"}
    # Without its other half a gang would wait in rendezvous; an elastic one goes on.
    failed = [] if "minAvailable" in task else [{"event": "PodFailed", "action": "TerminateJob"}]
    return [*refusals, evicted, *failed]
