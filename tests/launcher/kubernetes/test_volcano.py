"""TorchX's Volcano job, finished."""

import copy
import json

from torchx.schedulers.kubernetes_scheduler import app_to_resource, sanitize_for_serialization

from sparta.launcher.kubernetes import finish
from sparta.models.errors import ConfigError, DataError, PlanError
from tests.launcher.kubernetes import rendered


def test_it_is_plain_data_and_the_rendering_stays_as_it_was() -> None:
    resource = app_to_resource(rendered.app(), "sparta", None)
    before = copy.deepcopy(sanitize_for_serialization(resource))
    done = finish(resource, rendered.job())
    assert json.loads(json.dumps(done)) == done
    assert sanitize_for_serialization(resource) == before
    assert "namespace" not in done["metadata"]


def test_every_node_is_finished() -> None:
    tasks = rendered.volcano(nodes=3)["spec"]["tasks"]
    assert [task["name"] for task in tasks] == ["ranks-0", "ranks-1", "ranks-2"]
    for task in tasks:
        assert task["template"]["spec"]["terminationGracePeriodSeconds"] == 23


def test_mistakes_end_the_job_and_evictions_begin_it_again() -> None:
    codes = {error.exit_code for error in (ConfigError, DataError, PlanError)}
    for task in rendered.volcano()["spec"]["tasks"]:
        first = {one["exitCode"]: one["action"] for one in task["policies"][: len(codes)]}
        assert first == dict.fromkeys(codes, "TerminateJob"), "the first policy that fits counts"
        rest = {one["event"]: one["action"] for one in task["policies"][len(codes) :]}
        assert rest == {"PodEvicted": "RestartJob", "PodFailed": "TerminateJob"}


def test_retries_are_those_of_torchx() -> None:
    done = rendered.volcano(retries=2)["spec"]
    assert done["maxRetry"] == 3
    rest = {one["event"]: one["action"] for one in done["tasks"][0]["policies"] if "event" in one}
    assert rest == {"PodEvicted": "RestartJob", "PodFailed": "RestartJob"}


def test_an_elastic_job_outlives_a_pod() -> None:
    tasks = rendered.volcano(nodes=3, least=2)["spec"]["tasks"]
    assert [task["minAvailable"] for task in tasks] == [1, 1, 0]
    assert not any("PodFailed" in str(task["policies"]) for task in tasks)


def test_the_priority_is_of_the_job() -> None:
    assert rendered.volcano(rendered.job(priority_class="high"))["spec"]["priorityClassName"] == "high"
    assert "priorityClassName" not in rendered.volcano()["spec"]
