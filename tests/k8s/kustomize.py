"""Overlays rendered: by `kubectl kustomize` where it is there, else by the little of it that our files use."""

import copy
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
OVERLAYS = ("cpu", "gpu", "kueue")
KNOWN = {"apiVersion", "kind", "resources", "namespace", "configMapGenerator", "patches"}

Object = dict[str, Any]


def render(overlay: str) -> list[Object]:
    """Every object of an overlay."""
    return copy.deepcopy(_rendered(overlay))


@cache
def _rendered(overlay: str) -> list[Object]:
    folder = K8S / "overlays" / overlay
    return by_kubectl(folder) if shutil.which("kubectl") else by_hand(folder)


def by_kubectl(folder: Path) -> list[Object]:
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(done.stdout))


def by_hand(folder: Path) -> list[Object]:
    """Resources, a namespace, ConfigMaps of files, JSON patches that add or replace; anything else is refused."""
    wanted = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert set(wanted) <= KNOWN, set(wanted) - KNOWN
    objects: list[Object] = []
    for name in wanted["resources"]:
        path = folder / name
        objects += by_hand(path) if path.is_dir() else yaml.safe_load_all(path.read_text())
    objects += [_config_map(folder, one) for one in wanted.get("configMapGenerator", [])]
    if "namespace" in wanted:
        for thing in objects:
            if thing["kind"] != "Namespace":
                thing["metadata"]["namespace"] = wanted["namespace"]
    for patch in wanted.get("patches", []):
        target = patch["target"]
        (found,) = [
            one
            for one in objects
            if (one["kind"], one["metadata"]["name"]) == (target["kind"], target["name"])
        ]
        for step in yaml.safe_load(patch["patch"]):
            _apply(found, step)
    return objects


def _config_map(folder: Path, wanted: Object) -> Object:
    assert wanted["options"]["disableNameSuffixHash"]
    data = {Path(name).name: (folder / name).read_text() for name in wanted["files"]}
    metadata = {"name": wanted["name"], "labels": copy.deepcopy(wanted["options"]["labels"])}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def _apply(thing: Any, step: Object) -> None:
    *parents, last = [int(key) if key.isdecimal() else key for key in step["path"].split("/")[1:]]
    for key in parents:
        thing = thing[key]
    if last == "-":
        assert step["op"] == "add"
        thing.append(step["value"])
    else:
        assert step["op"] == "replace"
        assert isinstance(last, str) or last < len(thing)
        thing[last] = step["value"]
