"""What is wrong with a pod template though the API server may take it, inside a Volcano job above all.

A custom resource's pods are made later, by a controller, so a mistake in them shows as pods that never come.
"""

from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any, NoReturn

from sparta.launcher.kubernetes.grammar import (
    dns_label,
    dns_name,
    env_name,
    label_key,
    label_value,
    port_name,
    quantity,
)
from sparta.models.errors import ConfigError

Object = dict[str, Any]

WAY_OUT_NAME = "use lower case letters, digits and -, at most 63, a letter or digit at both ends"
WAY_OUT_LABEL = "use letters, digits, - _ and ., at most 63, a letter or digit at both ends"
EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def refuse(where: str, value: Any, rule: str, way_out: str) -> NoReturn:
    """Say what is wrong, in one line."""
    raise ConfigError(f"{where}: {value!r} {rule}; {way_out}")


def unique(where: str, values: Iterable[Any], what: str) -> None:
    """Check that no value is given twice."""
    seen = set()
    for value in values:
        if value in seen:
            refuse(where, value, f"is the {what} of two", "give each its own")
        seen.add(value)


def check_metadata(where: str, metadata: Object) -> None:
    """Labels and annotations."""
    for section in ("labels", "annotations"):
        for key, value in (metadata.get(section) or {}).items():
            if not label_key(key):
                refuse(f"{where} {section}", key, "is no key of a label", WAY_OUT_LABEL)
            if not isinstance(value, str):
                refuse(f"{where} {section}.{key}", value, "is no text", "quote it")
    _label_values(f"{where} labels", metadata.get("labels"))


def check_pod(where: str, template: Object) -> None:
    """A pod template of a job.

    Raises:
        ConfigError: the first thing that is wrong.
    """
    check_metadata(where, template.get("metadata") or {})
    spec = template.get("spec") or {}
    containers = spec.get("containers") or []
    if not containers:
        refuse(where, containers, "are no containers", "give one")
    everyone = [*containers, *(spec.get("initContainers") or [])]
    volumes = [volume.get("name", "") for volume in spec.get("volumes") or []]
    _names(f"{where} volume", volumes)
    _names(f"{where} container", [container.get("name", "") for container in everyone])
    for volume in spec.get("volumes") or []:
        _volume(f"{where} volume {volume['name']}", volume)
    for container in everyone:
        _container(f"{where} container {container['name']}", container, volumes)
    ports = [port for container in everyone for port in container.get("ports") or []]
    unique(f"{where} port", (port.get("name") for port in ports), "name")
    unique(f"{where} port", (port.get("containerPort") for port in ports), "number")
    for key in ("serviceAccountName", "priorityClassName"):
        if spec.get(key) is not None and not dns_name(spec[key]):
            refuse(f"{where} {key}", spec[key], "is no name", WAY_OUT_NAME)
    _label_values(f"{where} nodeSelector", spec.get("nodeSelector"))
    for toleration in spec.get("tolerations") or []:
        _toleration(f"{where} toleration", toleration)
    if spec.get("restartPolicy") == "Always":
        refuse(f"{where} restartPolicy", "Always", "is not for jobs", "write Never")


def _container(where: str, container: Object, volumes: list[str]) -> None:
    if not container.get("image"):
        refuse(f"{where} image", container.get("image"), "is no image", "give --image REPOSITORY/NAME:TAG")
    if (container.get("securityContext") or {}).get("privileged"):
        refuse(
            where,
            "privileged",
            "is refused where pods are restricted",
            "drop mounts of type=device; GPUs need none",
        )
    for port in container.get("ports") or []:
        name, number = port.get("name", ""), port.get("containerPort")
        if not port_name(name):
            refuse(f"{where} port", name, "is no name of a port", "use at most 15 of a-z, 0-9 and -")
        if not isinstance(number, int) or not 0 < number < 65536:
            refuse(f"{where} port {name}", number, "is no port", "give 1 to 65535")
    named = [port.get("name") for port in container.get("ports") or []]
    for probe in PROBES:
        port = (container.get(probe) or {}).get("httpGet", {}).get("port")
        if isinstance(port, str) and port not in named:
            refuse(
                f"{where} {probe}", port, "is none of its ports", f"name one of {', '.join(named) or 'them'}"
            )
    _environment(f"{where} env", container.get("env") or [])
    _resources(f"{where} resources", container.get("resources") or {})
    mounts = container.get("volumeMounts") or []
    unique(f"{where} mountPath", (mount.get("mountPath") for mount in mounts), "place")
    for mount in mounts:
        path = mount.get("mountPath", "")
        if not path.startswith("/") or ":" in path:
            refuse(f"{where} mountPath", path, "is no absolute path without a colon", "write dst=/PATH")
        if mount.get("name") not in volumes:
            refuse(f"{where} mount {path}", mount.get("name"), "is no volume of the pod", "add the volume")


def _environment(where: str, variables: list[Object]) -> None:
    unique(where, (variable.get("name") for variable in variables), "name")
    for variable in variables:
        name = variable.get("name", "")
        if not env_name(name):
            refuse(where, name, "is no name of a variable", "use letters, digits, _ - and ., no digit first")
        if not isinstance(variable.get("value", ""), str):
            refuse(f"{where} {name}", variable["value"], "is no text", "quote it")
        secret = (variable.get("valueFrom") or {}).get("secretKeyRef")
        if secret and not dns_name(secret.get("name", "")):
            refuse(f"{where} {name}", secret.get("name"), "is no name of a secret", WAY_OUT_NAME)
        # The grammar of a secret's keys is that of a variable's name, digits first too.
        if secret and not env_name(f"_{secret.get('key', '')}"):
            refuse(
                f"{where} {name}",
                secret.get("key"),
                "is no key of a secret",
                "use letters, digits, - _ and .",
            )


def _resources(where: str, resources: Object) -> None:
    amounts: dict[str, dict[str, Decimal]] = {"requests": {}, "limits": {}}
    for section, found in amounts.items():
        for name, text in (resources.get(section) or {}).items():
            amount = _amount(f"{where}.{section}.{name}", text)
            if "/" in name and amount != int(amount):
                refuse(f"{where}.{section}.{name}", text, "is no whole number", "devices are not shared")
            found[name] = amount
    for name in ("cpu", "memory"):
        if name not in amounts["requests"]:
            refuse(
                f"{where}.requests", resources.get("requests") or {}, f"ask for no {name}", "name a resource"
            )
    if "memory" not in amounts["limits"]:
        refuse(f"{where}.limits", resources.get("limits") or {}, "set no limit on memory", "name a resource")
    for name, amount in amounts["requests"].items():
        limit = amounts["limits"].get(name)
        if limit is not None and amount > limit:
            asked = f"{resources['requests'][name]} of {resources['limits'][name]}"
            refuse(f"{where}.{name}", asked, "asks for more than the limit", "lower the request")
    for name, amount in amounts["limits"].items():
        if "/" in name and amounts["requests"].get(name, amount) != amount:
            refuse(f"{where}.{name}", str(amount), "is not what is requested", "devices need request = limit")


def _amount(where: str, text: Any) -> Decimal:
    amount = quantity(text)
    if amount is None or amount < 0:
        refuse(where, text, "is no quantity", "write it as 500m, 2, 16Gi")
    return amount


def _volume(where: str, volume: Object) -> None:
    if "hostPath" in volume:
        refuse(
            where,
            volume["hostPath"].get("path"),
            "is a folder of the node, refused where pods are restricted",
            "mount a claim: type=volume,src=CLAIM,dst=PATH",
        )
    claim = volume.get("persistentVolumeClaim")
    if claim and not dns_name(claim.get("claimName", "")):
        refuse(where, claim.get("claimName"), "is no name of a claim", WAY_OUT_NAME)
    limit = (volume.get("emptyDir") or {}).get("sizeLimit")
    if limit is not None:
        _amount(f"{where} sizeLimit", limit)


def _toleration(where: str, toleration: Object) -> None:
    key, effect = toleration.get("key"), toleration.get("effect")
    operator = toleration.get("operator", "Equal")
    if key is not None and not label_key(key):
        refuse(f"{where} key", key, "is no key of a taint", WAY_OUT_LABEL)
    if key is None and operator != "Exists":
        refuse(f"{where} operator", operator, "needs a key", "give one, or operator: Exists")
    if effect is not None and effect not in EFFECTS:
        refuse(f"{where} effect", effect, f"is none of {', '.join(EFFECTS)}", "write one of them")
    if not label_value(toleration.get("value") or ""):
        refuse(f"{where} value", toleration["value"], "is no value of a taint", WAY_OUT_LABEL)


def _label_values(where: str, labels: Object | None) -> None:
    for key, value in (labels or {}).items():
        _each(f"{where}.{key}", [value], label_value, "is no value of a label", WAY_OUT_LABEL)


def _names(where: str, names: list[str]) -> None:
    _each(where, names, dns_label, "is no name", WAY_OUT_NAME)
    unique(where, names, "name")


def _each(where: str, values: list[str], good: Callable[[str], bool], rule: str, way_out: str) -> None:
    for value in values:
        if not isinstance(value, str) or not good(value):
            refuse(where, value, rule, way_out)
