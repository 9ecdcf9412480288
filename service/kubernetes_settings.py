"""What a job asks of a Kubernetes cluster beyond what TorchX can say. A section of the job file; no torch here.

`sparta.launcher.kubernetes` writes it into the objects that `sparta submit` sends, and checks names and quantities
there, where the whole object is known.
"""

import math
import re
from collections.abc import Mapping
from typing import Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from sparta.service.settings import Settings

MARGIN_SECONDS = 15
"""What a pod needs after SIGTERM beside the last checkpoint: the signal on its way to the ranks, and their end."""


class TolerationSettings(Settings):
    """A taint that the pods put up with."""

    key: str | None = None
    """Every key if not said; then `operator` must be Exists."""
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    """What an Equal taint is set to."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Every effect if not said."""
    seconds: NonNegativeInt | None = None
    """How long a NoExecute taint is put up with; for ever if not said."""

    @model_validator(mode="after")
    def _is_one_the_cluster_takes(self) -> "TolerationSettings":
        if self.operator == "Exists" and self.value is not None:
            raise ValueError(f"value {self.value}: Exists asks for none; write operator: Equal")
        if self.operator == "Equal" and (self.key is None or self.value is None):
            raise ValueError("operator Equal compares a key with a value; give both, or write Exists")
        if self.seconds is not None and self.effect != "NoExecute":
            raise ValueError(f"seconds {self.seconds} is only heard with effect: NoExecute; drop it")
        return self


class ProbeSettings(Settings):
    """When the cluster gives a pod up. Only trainings serve the addresses that it asks."""

    enabled: bool = True
    startup_seconds: PositiveInt = 3600
    """From the start of a pod to that of training, while other pods, tables and checkpoints load."""
    down_seconds: PositiveInt = 900
    """Without an answer, or without a step in `metrics.healthy_seconds`, after which the pod is ended."""


OURS = "sparta.dev/"
"""Beginning of the labels that every object of a job has."""


class KubernetesSettings(Settings):
    labels: Mapping[str, str] = {}
    """Of the job and its pods."""
    annotations: Mapping[str, str] = {}
    """Of the pods."""
    node_selector: Mapping[str, str] = {}
    """Labels that a node must have."""
    tolerations: tuple[TolerationSettings, ...] = ()
    secret_env: Mapping[str, str] = {}
    """Environment variables from secrets: a variable's name, and `secret/key`."""
    priority_class: str | None = None
    service_account: str | None = None
    """Who the pods are; `--cfg service_account=` if not said."""
    queue: str | None = None
    """Volcano's queue or Kueue's LocalQueue, where `--cfg queue=` names none."""
    cluster_domain: str = "cluster.local"
    """What the cluster's DNS names end with."""
    grace_seconds: PositiveInt | None = None
    """Between SIGTERM and SIGKILL of a pod; `checkpoint.grace_seconds` and 15 more if not said."""
    probes: ProbeSettings = ProbeSettings()
    scratch_gb: PositiveFloat = 10.0
    """Room for temporary files and compiled kernels, in GiB; the rest of the file system is read-only."""
    shm_gb: PositiveFloat | None = None
    """Shared memory of a pod (/dev/shm), in GiB, taken from its memory limit; no other limit if not said."""
    user: PositiveInt = 10001
    """Number of the user and group that the pods run as; the volumes must be writable by that group."""

    @field_validator("labels")
    @classmethod
    def _are_not_ours(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        for name in value:
            if name.startswith(OURS):
                raise ValueError(f"{name}: labels that begin with {OURS} are set by sparta; drop it")
        return value

    @field_validator("secret_env")
    @classmethod
    def _names_secret_and_key(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        for name, source in value.items():
            if not re.fullmatch(r"[^/]+/[^/]+", source):
                raise ValueError(f"{name}: {source} is not of the form secret/key")
        return value

    def grace(self, checkpoint_seconds: float) -> int:
        """Seconds between SIGTERM and SIGKILL, for a last checkpoint that may take so long.

        Raises:
            ValueError: the job gives the pods less than the checkpoint needs.
        """
        need = math.ceil(checkpoint_seconds) + MARGIN_SECONDS
        if self.grace_seconds is not None and self.grace_seconds < need:
            raise ValueError(
                f"kubernetes.grace_seconds {self.grace_seconds}: a last checkpoint needs {need} "
                f"(checkpoint.grace_seconds and {MARGIN_SECONDS} more); give {need} or drop it"
            )
        return self.grace_seconds or need
