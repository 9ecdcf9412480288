"""Each planted mistake is refused in one line that names the object, the value and the way out; nothing else is."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparta.launcher.kubernetes import lint
from sparta.launcher.kubernetes.checks import ACTIONS, EVENTS
from sparta.models.errors import ConfigError
from tests.launcher.kubernetes import rendered

Change = Callable[[Any], None]

VOLCANO = rendered.volcano()
INDEXED = rendered.indexed()


def refusal(objects: list[Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        lint(objects)
    line = str(caught.value)
    assert "\n" not in line
    assert "; " in line, "a way out"
    return line


def first(thing: Any) -> Any:
    return thing["spec"]["tasks"][0]


def policy(**said: Any) -> Change:
    return lambda thing: first(thing)["policies"].append(said)


def put(place: Callable[[Any], Any], key: str | int, value: Any) -> Change:
    def change(thing: Any) -> None:
        place(thing)[key] = value

    return change


def spec(thing: Any) -> Any:
    return thing["spec"]


def pod(thing: Any) -> Any:
    return rendered.template(thing)["spec"]


def metadata(thing: Any) -> Any:
    return rendered.template(thing)["metadata"]


def port(number: int) -> Callable[[Any], Any]:
    return lambda thing: rendered.container(thing)["ports"][number]


def amounts(section: str) -> Callable[[Any], Any]:
    return lambda thing: rendered.container(thing)["resources"][section]


def add(place: Callable[[Any], Any], key: str, value: Any) -> Change:
    return lambda thing: place(thing).setdefault(key, []).append(value)


OF_VOLCANO: dict[str, tuple[Change, str]] = {
    "no queue": (put(spec, "queue", ""), "'' is no queue"),
    "queue's name": (put(spec, "queue", "My_queue"), "queue: 'My_queue' is no name"),
    "no tasks": (put(spec, "tasks", []), "tasks: [] are none"),
    "minAvailable": (
        put(spec, "minAvailable", 3),
        "minAvailable: 3 is not between 0 and the 2 pods of its tasks",
    ),
    "a task's minAvailable": (put(first, "minAvailable", 2), "the 1 pods of its replicas"),
    "replicas": (put(first, "replicas", 0), "replicas: 0 is no number of pods"),
    "two tasks of one name": (put(first, "name", "ranks-1"), "'ranks-1' is the name of two"),
    "a task's name": (put(first, "name", "ranks_0"), "'ranks_0' is no name of a task"),
    "event": (policy(event="PodFail", action="RestartJob"), "'PodFail' is no event of Volcano"),
    "action": (policy(event="Unknown", action="Restart"), "'Restart' is no action of Volcano"),
    "no action": (policy(event="Unknown"), "None is no action"),
    "event and exit code": (
        policy(event="Unknown", exitCode=9, action="AbortJob"),
        "names not exactly one of",
    ),
    "neither": (policy(action="AbortJob"), "names not exactly one of"),
    "exit code 0": (policy(exitCode=0, action="AbortJob"), "exitCode: 0 is no exit code of a failure"),
    "an event twice": (policy(events=["PodFailed"], action="AbortJob"), "'PodFailed' is the event of two"),
    "an exit code twice": (policy(exitCode=2, action="AbortJob"), "2 is the exit code of two"),
    "every event and one": (policy(event="*", action="AbortJob"), "leaves nothing to other events"),
    "plugin": (lambda thing: put(spec, "plugins", {"svc": "x"})(thing), "plugin svc: 'x' is no list"),
    "a long name": (
        lambda thing: thing["metadata"].update(name="a" * 60),
        "is longer than the 63 letters of a host name",
    ),
    "a name for its service": (
        lambda thing: thing["metadata"].update(name="7-clicks"),
        "'7-clicks' is no name of a service",
    ),
}

OF_PODS: dict[str, tuple[Change, str]] = {
    "container's name": (put(rendered.container, "name", "Ranks"), "container: 'Ranks' is no name"),
    "image": (put(rendered.container, "image", ""), "'' is no image; give --image"),
    "label value": (
        lambda thing: metadata(thing)["labels"].update(a="b c"),
        "labels.a: 'b c' is no value of a label",
    ),
    "long label": (
        lambda thing: metadata(thing)["labels"].update(a="b" * 64),
        "is no value of a label",
    ),
    "label key": (lambda thing: metadata(thing)["labels"].update({"a b": "c"}), "'a b' is no key of a label"),
    "annotation": (lambda thing: metadata(thing)["annotations"].update(a=1), "annotations.a: 1 is no text"),
    "node selector": (put(pod, "nodeSelector", {"gpu": "h 200"}), "nodeSelector.gpu: 'h 200' is no value"),
    "port's name": (put(port(1), "name", "metrics-of-the-rank"), "is no name of a port"),
    "port": (put(port(1), "containerPort", 70000), "70000 is no port"),
    "two ports of one name": (put(port(2), "name", "metrics-2"), "'metrics-2' is the name of two"),
    "one port twice": (put(port(1), "containerPort", 9401), "9401 is the number of two"),
    "probe": (
        lambda thing: rendered.container(thing)["livenessProbe"]["httpGet"].update(port="http"),
        "livenessProbe: 'http' is none of its ports",
    ),
    "quantity": (put(amounts("limits"), "memory", "16GB"), "limits.memory: '16GB' is no quantity"),
    "negative": (put(amounts("requests"), "cpu", "-1"), "'-1' is no quantity"),
    "no request": (lambda thing: amounts("requests")(thing).pop("cpu"), "ask for no cpu"),
    "no limit": (lambda thing: amounts("limits")(thing).pop("memory"), "set no limit on memory"),
    "no resources": (lambda thing: rendered.container(thing).pop("resources"), "ask for no cpu"),
    "request over limit": (put(amounts("requests"), "memory", "300Gi"), "asks for more than the limit"),
    "half a GPU": (put(amounts("limits"), "nvidia.com/gpu", "0.5"), "'0.5' is no whole number"),
    "GPUs shared": (put(amounts("requests"), "nvidia.com/gpu", "4"), "'8' is not what is requested"),
    "variable": (
        add(rendered.container, "env", {"name": "1A", "value": ""}),
        "'1A' is no name of a variable",
    ),
    "number as variable": (add(rendered.container, "env", {"name": "A", "value": 1}), "env A: 1 is no text"),
    "variable twice": (
        add(rendered.container, "env", {"name": "HOME", "value": "/"}),
        "'HOME' is the name of two",
    ),
    "secret": (
        add(
            rendered.container,
            "env",
            {"name": "A", "valueFrom": {"secretKeyRef": {"name": "A B", "key": "k"}}},
        ),
        "'A B' is no name of a secret",
    ),
    "secret's key": (
        add(
            rendered.container,
            "env",
            {"name": "A", "valueFrom": {"secretKeyRef": {"name": "a", "key": "k k"}}},
        ),
        "'k k' is no key of a secret",
    ),
    "mount of nothing": (
        add(rendered.container, "volumeMounts", {"name": "gone", "mountPath": "/gone"}),
        "mount /gone: 'gone' is no volume of the pod",
    ),
    "mount twice": (
        add(rendered.container, "volumeMounts", {"name": "scratch", "mountPath": "/data"}),
        "'/data' is the place of two",
    ),
    "relative mount": (
        add(rendered.container, "volumeMounts", {"name": "scratch", "mountPath": "cache"}),
        "'cache' is no absolute path",
    ),
    "folder of the node": (
        add(pod, "volumes", {"name": "host", "hostPath": {"path": "/home"}}),
        "'/home' is a folder of the node",
    ),
    "claim": (
        add(pod, "volumes", {"name": "data", "persistentVolumeClaim": {"claimName": "My Data"}}),
        "'My Data' is no name of a claim",
    ),
    "scratch": (
        add(pod, "volumes", {"name": "more", "emptyDir": {"sizeLimit": "10 GB"}}),
        "'10 GB' is no quantity",
    ),
    "two volumes of one name": (
        add(pod, "volumes", {"name": "scratch", "emptyDir": {}}),
        "is the name of two",
    ),
    "privileged": (
        lambda thing: rendered.container(thing)["securityContext"].update(privileged=True),
        "is refused where pods are restricted",
    ),
    "effect": (put(pod, "tolerations", [{"key": "a", "effect": "Never"}]), "'Never' is none of NoSchedule"),
    "operator": (put(pod, "tolerations", [{"operator": "Equal"}]), "'Equal' needs a key"),
    "taint": (put(pod, "tolerations", [{"key": "a b"}]), "'a b' is no key of a taint"),
    "service account": (put(pod, "serviceAccountName", "Me"), "serviceAccountName: 'Me' is no name"),
    "priority class": (
        put(pod, "priorityClassName", "Very High"),
        "priorityClassName: 'Very High' is no name",
    ),
    "restart policy": (put(pod, "restartPolicy", "Always"), "'Always' is not for jobs"),
    "no containers": (put(pod, "containers", []), "are no containers"),
}

OF_INDEXED: dict[str, tuple[Change, str]] = {
    "parallelism": (put(spec, "parallelism", 1), "'1 of 2' pods run at a time"),
    "service": (put(pod, "subdomain", "elsewhere"), "'elsewhere' has no headless Service"),
    "queue": (
        lambda thing: thing["metadata"]["labels"].pop("kueue.x-k8s.io/queue-name"),
        "'suspend' waits for a queue that is not named",
    ),
    "restart policy": (put(pod, "restartPolicy", "OnFailure"), "'OnFailure' hides exit codes"),
    "a long name": (lambda thing: thing["metadata"].update(name="a" * 62), "is longer than the 63 letters"),
    "kind": (lambda thing: thing.pop("apiVersion"), "is no apiVersion with a kind"),
    "namespace": (lambda thing: thing["metadata"].update(namespace="My.space"), "'My.space' is no namespace"),
}


@pytest.mark.parametrize("change, words", (OF_VOLCANO | OF_PODS).values(), ids=OF_VOLCANO | OF_PODS)
def test_a_mistake_in_a_volcano_job_is_refused_by_name(change: Change, words: str) -> None:
    thing = copy.deepcopy(VOLCANO)
    change(thing)
    line = refusal([thing])
    assert words in line
    assert thing["metadata"]["name"] in line


@pytest.mark.parametrize("change, words", (OF_INDEXED | OF_PODS).values(), ids=OF_INDEXED | OF_PODS)
def test_a_mistake_in_an_indexed_job_is_refused_by_name(change: Change, words: str) -> None:
    objects = copy.deepcopy(INDEXED)
    if words == OF_PODS["restart policy"][1]:
        objects[0]["spec"].pop("podFailurePolicy")
    change(objects[0])
    line = refusal(objects)
    assert words in line
    assert objects[0]["metadata"]["name"] in line


def test_what_is_rendered_is_taken_as_it_was() -> None:
    for objects in ([copy.deepcopy(VOLCANO)], copy.deepcopy(INDEXED)):
        before = copy.deepcopy(objects)
        lint(objects)
        assert objects == before


def test_a_service_needs_a_name_that_begins_with_a_letter() -> None:
    objects = copy.deepcopy(INDEXED)
    objects[1]["metadata"]["name"] = "7-clicks"
    assert "'7-clicks' is no name of a service" in refusal([objects[1]])


def test_one_object_is_sent_once() -> None:
    assert "is the name of two" in refusal([*copy.deepcopy(INDEXED), copy.deepcopy(INDEXED[1])])


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("action", ACTIONS)
def test_all_that_volcano_knows_is_taken(event: str, action: str) -> None:
    thing = copy.deepcopy(VOLCANO)
    thing["spec"]["policies"] = [{"event": event, "action": action}]
    lint([thing])


@given(st.integers(-5, 10))
def test_as_many_pods_may_be_wanted_at_least_as_there_are(least: int) -> None:
    thing = copy.deepcopy(VOLCANO)
    thing["spec"]["minAvailable"] = least
    if 0 <= least <= 2:
        lint([thing])
    else:
        assert f"minAvailable: {least} is not between" in refusal([thing])


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_request_is_at_most_the_limit(request: int, limit: int) -> None:
    thing = copy.deepcopy(VOLCANO)
    amounts("requests")(thing)["memory"] = f"{request}Ki"
    amounts("limits")(thing)["memory"] = f"{limit * 1024}"
    if request <= limit:
        lint([thing])
    else:
        assert "asks for more than the limit" in refusal([thing])
