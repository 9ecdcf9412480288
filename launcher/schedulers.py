"""TorchX's schedulers as this service needs them, and one more: clusters with Kueue in place of Volcano.

What is rendered is finished by the job file's `kubernetes:` section and checked (launcher/kubernetes) before it
is printed or sent. Only what talks to a cluster loads its client's configuration.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torchx.schedulers.api import AppDryRunInfo, DescribeAppResponse, ListAppResponse, Scheduler
from torchx.schedulers.kubernetes_scheduler import (
    JOB_STATE,
    LABEL_REPLICA_ID,
    KubernetesJob,
    KubernetesScheduler,
)
from torchx.schedulers.slurm_scheduler import SlurmScheduler
from torchx.specs import AppDef, AppState, ReplicaStatus, Role, RoleStatus, runopts

from sparta.launcher.app import ROLE
from sparta.launcher.pods import Pods, api_client, namespace_here

if TYPE_CHECKING:
    from sparta.service.config import Job

JOB_LABEL = "batch.kubernetes.io/job-name"
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"


class Volcano(KubernetesScheduler):  # type: ignore[misc]
    """`-s kubernetes`: TorchX's, whose job is finished and checked."""

    def __init__(self, session: str, job: "Job | None" = None, namespace: str | None = None) -> None:
        super().__init__(session)
        self._job, self._namespace = job, namespace
        self._client: Any = None

    def _submit_dryrun(self, app: AppDef, cfg: Any) -> Any:
        from sparta.launcher.kubernetes import finish, lint

        assert self._job is not None
        rendered = super()._submit_dryrun(app, cfg).request
        resource = finish(rendered.resource, self._job, namespace=cfg.get("namespace"))
        lint([resource])
        return AppDryRunInfo(KubernetesJob(rendered.images_to_push, resource), repr)

    def describe(self, app_id: str) -> DescribeAppResponse | None:
        from kubernetes.client.exceptions import ApiException

        try:
            return super().describe(app_id)
        except ApiException as error:
            if error.status == 404:
                return None
            raise

    def _api_client(self) -> Any:
        if self._client is None:
            self._client = api_client()
        return self._client

    def log_iter(
        self,
        app_id: str,
        role_name: str,
        k: int = 0,
        regex: str | None = None,
        since: Any = None,
        until: Any = None,
        should_tail: bool = False,
        streams: Any = None,
    ) -> Iterable[str]:
        namespace, name = app_id.split(":")
        pods = Pods(self._api_client(), namespace, f"volcano.sh/job-name={name},{LABEL_REPLICA_ID}={k}")
        return pods.log(follow=should_tail, ended=lambda: _ended(self.describe(app_id)))

    def list(self) -> list[ListAppResponse]:
        namespace = self._namespace or namespace_here()
        found = self._custom_objects_api().list_namespaced_custom_object(
            group="batch.volcano.sh", version="v1alpha1", namespace=namespace, plural="jobs"
        )
        # A job that was only just made has no status.
        return [
            ListAppResponse(
                f"{namespace}:{one['metadata']['name']}",
                JOB_STATE.get(one.get("status", {}).get("state", {}).get("phase"), AppState.PENDING),
            )
            for one in found["items"]
        ]


@dataclass
class Objects:
    """What is sent, the job first."""

    objects: list[dict[str, Any]]


class Kueue(Scheduler[Any]):  # type: ignore[misc]
    """`-s kueue`: an indexed Job, which Kueue starts when there is room."""

    def __init__(self, session: str, job: "Job | None" = None, namespace: str | None = None) -> None:
        super().__init__("kueue", session)
        self._job, self._namespace = job, namespace
        self._client: Any = None

    def _run_opts(self) -> runopts:
        opts = runopts()
        opts.add("namespace", type_=str, help="Kubernetes namespace", default="default")
        opts.add("queue", type_=str, help="Kueue's LocalQueue", default=None)
        return opts

    def _validate(self, app: AppDef, scheduler: str) -> None:
        """Objects are checked as a whole."""

    def _submit_dryrun(self, app: AppDef, cfg: Any) -> Any:
        from sparta.launcher.kubernetes import indexed_job, lint

        assert self._job is not None
        objects = indexed_job(app, self._job, queue=cfg.get("queue"), namespace=cfg["namespace"])
        lint(objects)
        return AppDryRunInfo(Objects(objects), repr)

    def schedule(self, dryrun_info: Any) -> str:
        from kubernetes.utils import create_from_dict

        from sparta.launcher.kubernetes import adopt

        objects, namespace = dryrun_info.request.objects, dryrun_info._cfg["namespace"]
        made = self._jobs("create", namespace, body=objects[0])
        for thing in adopt(objects, made["metadata"]["uid"]):
            create_from_dict(self._api(), thing, namespace=namespace)
        return f"{namespace}:{made['metadata']['name']}"

    def describe(self, app_id: str) -> DescribeAppResponse | None:
        from kubernetes.client.exceptions import ApiException

        namespace, name = app_id.split(":")
        try:
            found = self._jobs("get", namespace, name=name)
        except ApiException as error:
            if error.status == 404:
                return None
            raise
        state, why = _state(found.get("status") or {})
        count = found["spec"].get("completions", 1)
        return DescribeAppResponse(
            app_id,
            state,
            msg=why,
            roles=[Role(ROLE, "", num_replicas=count)],
            roles_statuses=[RoleStatus(ROLE, [ReplicaStatus(k, state, ROLE, "") for k in range(count)])],
        )

    def list(self) -> list[ListAppResponse]:
        namespace = self._namespace or namespace_here()
        found = self._jobs("list", namespace, label_selector="sparta.dev/job")
        return [
            ListAppResponse(f"{namespace}:{one['metadata']['name']}", _state(one.get("status") or {})[0])
            for one in found["items"]
        ]

    def log_iter(
        self,
        app_id: str,
        role_name: str,
        k: int = 0,
        regex: str | None = None,
        since: Any = None,
        until: Any = None,
        should_tail: bool = False,
        streams: Any = None,
    ) -> Iterable[str]:
        namespace, name = app_id.split(":")
        pods = Pods(self._api(), namespace, f"{JOB_LABEL}={name},{INDEX_LABEL}={k}")
        return pods.log(follow=should_tail, ended=lambda: _ended(self.describe(app_id)))

    def _cancel_existing(self, app_id: str) -> None:
        namespace, name = app_id.split(":")
        # What belongs to it, its pods too, goes with it.
        self._jobs("delete", namespace, name=name, propagation_policy="Background")

    def _api(self) -> Any:
        if self._client is None:
            self._client = api_client()
        return self._client

    def _jobs(self, verb: str, namespace: str, **arguments: Any) -> Any:
        """Create, get, list or delete Jobs, as plain data."""
        from kubernetes.client import CustomObjectsApi

        call = getattr(CustomObjectsApi(self._api()), f"{verb}_namespaced_custom_object")
        return call(group="batch", version="v1", namespace=namespace, plural="jobs", **arguments)


def factories(job: "Job | None" = None, namespace: str | None = None) -> dict[str, Callable[..., Any]]:
    """The schedulers by name, for a runner.

    Args:
        job: what is to be submitted.
        namespace: whose jobs are listed; None for that of the kube config.
    """
    return {
        "kubernetes": lambda session, **_: Volcano(session, job, namespace),
        "slurm": lambda session, **_: SlurmScheduler(session),
        "kueue": lambda session, **_: Kueue(session, job, namespace),
    }


def _state(status: dict[str, Any]) -> tuple[AppState, str]:
    """Of a batch Job, by its conditions; and why."""
    said = {one["type"]: one for one in status.get("conditions") or [] if one["status"] == "True"}
    for kind, state in (
        ("Failed", AppState.FAILED),
        ("Complete", AppState.SUCCEEDED),
        ("Suspended", AppState.PENDING),
    ):
        if kind in said:
            return state, said[kind].get("message", "")
    running = status.get("active") or status.get("ready") or said
    return (AppState.RUNNING if running else AppState.PENDING), ""


def _ended(described: DescribeAppResponse | None) -> bool:
    from torchx.specs import is_terminal

    return described is None or is_terminal(described.state)
