"""The API server of a cluster, and what the pods of a job print. Loads its client when it is asked for."""

import time
from collections.abc import Callable, Iterator
from typing import Any

from sparta.models.errors import ConfigError

LOOK_SECONDS = 5.0
"""Between two looks for pods that have not been made yet."""


def api_client() -> Any:
    """The API server that the kube config names, or that of the cluster we run in.

    Raises:
        ConfigError: there is neither.
    """
    from kubernetes import client, config

    configuration = client.Configuration()
    try:
        config.load_kube_config(client_configuration=configuration)
    except config.ConfigException as error:
        try:
            config.load_incluster_config(client_configuration=configuration)
        except config.ConfigException:
            reason = str(error).split("\n")[0].rstrip(".")
            raise ConfigError(f"no cluster: {reason}; set KUBECONFIG to the file of one") from error
    return client.ApiClient(configuration)


def namespace_here() -> str:
    """The namespace of the kube config's context."""
    from kubernetes import config

    try:
        _, context = config.list_kube_config_contexts()
    except config.ConfigException:
        return "default"
    return str(context["context"].get("namespace") or "default")


class Pods:
    """The pods of one machine of a job, as they come and go."""

    def __init__(self, client: Any, namespace: str, selector: str) -> None:
        from kubernetes import client as kubernetes

        self._api = kubernetes.CoreV1Api(client)
        self._namespace, self._selector = namespace, selector

    def log(self, *, follow: bool, ended: Callable[[], bool]) -> Iterator[str]:
        """Lines of the newest pod; with `follow` of all that come until the job has ended."""
        seen = set[tuple[Any, str]]()
        while True:
            over = ended()
            for pod in self._started() if follow else self._started()[-1:]:
                if pod not in seen:
                    seen.add(pod)
                    yield from self._lines(pod[1], follow)
            if over or not follow:
                return
            time.sleep(LOOK_SECONDS)

    def _started(self) -> list[tuple[Any, str]]:
        """When each was made, and its name; oldest first. One that is made anew may have the same name."""
        found = self._api.list_namespaced_pod(self._namespace, label_selector=self._selector).items
        return sorted(
            (pod.metadata.creation_timestamp, pod.metadata.name)
            for pod in found
            if pod.status.phase != "Pending"
        )

    def _lines(self, name: str, follow: bool) -> Iterator[str]:
        # The client would turn the bytes of a log into their Python spelling.
        response = self._api.read_namespaced_pod_log(
            name, self._namespace, follow=follow, _preload_content=False
        )
        rest = b""
        for chunk in response.stream():
            *lines, rest = (rest + chunk).split(b"\n")
            yield from (line.decode(errors="replace") for line in lines)
        if rest:
            yield rest.decode(errors="replace")
