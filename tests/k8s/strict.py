"""Objects against their schemas, as strictly as an API server that warns of nothing: unknown fields are refused.

Built-in kinds, and the pods inside a Volcano job, by `kubernetes-validate`; custom resources by their definitions,
which are not ours to ship: they are looked for in ${SPARTA_CRDS}, else in ../shared/crds beside the project. Rules
written in CEL are not evaluated. Kueue's definitions are not there; what we use of it is written down here.
"""

import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.k8s.kustomize import ROOT, Object

VERSION = "1.36"
CRDS = Path(os.environ.get("SPARTA_CRDS", ROOT.parent / "shared" / "crds"))
needs_crds = pytest.mark.skipif(not CRDS.is_dir(), reason=f"no definitions of custom resources in {CRDS}")

QUANTITY = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?([KMGTPE]i|[mkMGTPE])?$"}
NAME = {"type": "string", "minLength": 1}


def section(**properties: Any) -> Object:
    """A mapping of exactly these keys."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def several(item: Object) -> Object:
    return {"type": "array", "items": item, "minItems": 1}


KUEUE = {
    "ResourceFlavor": {
        "type": "object",
        "properties": {"nodeLabels": {"type": "object"}},
        "additionalProperties": False,
    },
    "ClusterQueue": section(
        namespaceSelector=section(matchLabels={"type": "object"}),
        resourceGroups=several(
            section(
                coveredResources=several(NAME),
                flavors=several(
                    section(name=NAME, resources=several(section(name=NAME, nominalQuota=QUANTITY)))
                ),
            )
        ),
    ),
    "LocalQueue": section(clusterQueue=NAME),
}


def check(thing: Object) -> None:
    """Refuse what an API server would refuse, and the pods that Volcano would not get."""
    group = thing["apiVersion"].rpartition("/")[0]
    if group == "kueue.x-k8s.io":
        jsonschema.validate(thing["spec"], KUEUE[thing["kind"]])
    elif "." in group and not group.endswith(".k8s.io"):
        definition(group, thing["apiVersion"].rpartition("/")[2], thing["kind"]).validate(thing)
    else:
        kubernetes_validate.validate(thing, VERSION, strict=True)
    if group == "batch.volcano.sh":
        for task in thing["spec"]["tasks"]:
            pod = {"apiVersion": "v1", "kind": "Pod", **task["template"]}
            kubernetes_validate.validate(pod, VERSION, strict=True)


@cache
def definition(group: str, version: str, kind: str) -> jsonschema.Draft202012Validator:
    """What checks a custom resource, its schema closed."""
    for path in CRDS.glob("*.yaml"):
        crd = yaml.safe_load(path.read_text())["spec"]
        if (crd["group"], crd["names"]["kind"]) == (group, kind):
            (schema,) = [one["schema"] for one in crd["versions"] if one["name"] == version and one["served"]]
            closed: Object = close(schema["openAPIV3Schema"])
            closed["properties"]["metadata"] = {"type": "object", "required": ["name"]}
            return jsonschema.Draft202012Validator(closed)
    raise AssertionError(f"{CRDS} has no {kind} of {group}")


def close(schema: Any) -> Any:
    """Kubernetes' dialect as JSON Schema: no unknown fields, and what may be a number or a text may be both."""
    if isinstance(schema, list):
        return [close(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: close(value) for key, value in schema.items() if key != "properties"}
    if "properties" in schema:
        closed["properties"] = {key: close(value) for key, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            closed.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        closed.pop("type", None)
        closed["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if isinstance(schema.get("pattern"), str):
        # Go may turn to ignoring case inside an expression, Python only in front of it.
        closed["pattern"] = re.sub(r"^\^\(\?i\)", "(?i)^", schema["pattern"])
    if schema.get("nullable"):
        closed = {"anyOf": [closed, {"type": "null"}]}
    return closed
