"""Stands in for the API server of a cluster: keeps what it is sent, and serves it back.

No more than the calls of `sparta submit` and its sisters; a real one is asked where KUBECONFIG names it (tests/k8s).
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

Object = dict[str, Any]


class Cluster:
    """Its objects, by their path; the logs of its pods, by their name."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.logs: dict[str, str] = {}
        self.asked: list[str] = []
        """Method, path and query of each request."""

    def pod(self, namespace: str, name: str, labels: dict[str, str], log: str) -> None:
        """A pod that has run."""
        metadata = {
            "name": name,
            "labels": labels,
            "creationTimestamp": f"2026-01-01T00:00:{len(self.logs):02}Z",
        }
        self.objects[f"/api/v1/namespaces/{namespace}/pods/{name}"] = {
            "metadata": metadata,
            "status": {"phase": "Succeeded"},
        }
        self.logs[name] = log

    def kinds(self) -> list[str]:
        """What there is, in order."""
        return [str(thing.get("kind")) for thing in self.objects.values()]

    def under(self, path: str, selector: str) -> list[Object]:
        """Objects of a collection that have the labels `a=b,c`."""
        wanted = [word.partition("=") for word in selector.split(",") if word]
        return [
            thing
            for place, thing in self.objects.items()
            if place.rpartition("/")[0] == path
            and all(
                key in (labels := thing["metadata"].get("labels", {}))
                and (not equals or labels[key] == value)
                for key, equals, value in wanted
            )
        ]


def handler(cluster: Cluster) -> type[BaseHTTPRequestHandler]:
    """What answers."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, query = self._asked()
            if path.endswith("/log"):
                return self._answer(200, cluster.logs[path.split("/")[-2]].encode(), "text/plain")
            thing = cluster.objects.get(path.removesuffix("/status"))
            if thing is not None:
                return self._say(200, thing)
            if path.count("/") in (5, 6) and path.rpartition("/")[2] in ("jobs", "pods"):
                return self._say(200, {"items": cluster.under(path, query.get("labelSelector", [""])[0])})
            return self._say(404, {"message": f"{path} not found"})

        def do_POST(self) -> None:
            path, _ = self._asked()
            thing = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            place = f"{path}/{thing['metadata']['name']}"
            if thing["metadata"]["name"].startswith("forbidden"):
                return self._say(403, {"message": "you may not\nmake jobs here"})
            thing["metadata"]["uid"] = f"uid-{len(cluster.objects)}"
            cluster.objects[place] = thing
            return self._say(201, thing)

        def do_DELETE(self) -> None:
            path, _ = self._asked()
            cluster.objects.pop(path)
            self._say(200, {})

        def _asked(self) -> tuple[str, dict[str, list[str]]]:
            cluster.asked.append(f"{self.command} {self.path}")
            parts = urlsplit(self.path)
            return parts.path, parse_qs(parts.query)

        def _say(self, code: int, body: Object) -> None:
            self._answer(code, json.dumps(body).encode(), "application/json")

        def _answer(self, code: int, body: bytes, kind: str) -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler


@contextmanager
def serving(cluster: Cluster, kubeconfig: Path, namespace: str | None) -> Iterator[None]:
    """Serve it on a free port of this machine; `kubeconfig` is written to lead there."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(cluster))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    context = {"cluster": "fake", "user": "me", **({"namespace": namespace} if namespace else {})}
    kubeconfig.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "fake",
                "clusters": [
                    {"name": "fake", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}
                ],
                "users": [{"name": "me", "user": {}}],
                "contexts": [{"name": "fake", "context": context}],
            }
        )
    )
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
