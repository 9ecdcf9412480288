"""What a cluster is sent: TorchX's rendering of a job, finished by its `kubernetes:` section, and checked.

    command  what a rendered command line says: verb, run, ranks of a node
    pod      one pod template: security, scratch, ports, probes, environment, where it may run
    volcano  the Volcano job that TorchX renders
    indexed  the same job for clusters without Volcano: an indexed batch/v1 Job, Kueue's queue label
    grammar  names, labels and quantities as Kubernetes writes them
    checks   what the API server takes though no pod will come of it; pod_checks: the part about pods

Objects are plain dictionaries, as their YAML is. No torch here; TorchX loads when something is rendered.
"""

from typing import Any

__all__ = ["adopt", "finish", "indexed_job", "lint"]

_HOMES = {
    "adopt": "indexed",
    "finish": "volcano",
    "indexed_job": "indexed",
    "lint": "checks",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
