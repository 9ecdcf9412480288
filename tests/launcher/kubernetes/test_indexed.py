"""The indexed job: pods that find each other, one queue, one end."""

from typing import Any

import pytest

from sparta.launcher.kubernetes import adopt, indexed_job
from sparta.models.errors import ConfigError
from tests.launcher.kubernetes import rendered


def test_the_ranks_meet_at_the_name_that_the_first_pod_gives_itself() -> None:
    job, service, _ = rendered.indexed()
    name, spec = job["metadata"]["name"], rendered.template(job)["spec"]
    variables = {one["name"]: one.get("value") for one in rendered.container(job)["env"]}
    command = rendered.container(job)["command"]
    # A pod finds this name in its own /etc/hosts: its host name is the job's with its number.
    assert variables["SPARTA_RANK0_HOST"] == f"{name}-0.{spec['subdomain']}.sparta.svc.cluster.local"
    assert command[command.index("--rdzv-endpoint") + 1] == "env:SPARTA_RANK0_HOST:29500"
    assert spec["subdomain"] == service["metadata"]["name"] == name
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True


def test_kueue_starts_all_of_it() -> None:
    job, *_ = rendered.indexed(nodes=3)
    spec = job["spec"]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "sparta"
    assert spec["suspend"] is True
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 3)
    assert "annotations" not in job["metadata"]


def test_kueue_may_start_less_of_an_elastic_one() -> None:
    job, *_ = rendered.indexed(nodes=4, least=2)
    assert job["metadata"]["annotations"] == {
        "kueue.x-k8s.io/job-min-parallelism": "2",
        "kueue.x-k8s.io/job-completions-equal-parallelism": "true",
    }


@pytest.mark.parametrize("retries, nodes", [(0, 1), (0, 2), (3, 4)])
def test_every_attempt_may_cost_all_pods(retries: int, nodes: int) -> None:
    job, *_ = rendered.indexed(retries=retries, nodes=nodes)
    failures, limit = nodes * (retries + 1), job["spec"]["backoffLimit"]
    assert failures - nodes <= limit, "as many attempts as retries are allowed"
    assert limit < failures, "and no more"
    assert limit >= nodes - 1, "an evicted pod 0 takes the others with it"


def test_mistakes_end_it_and_evictions_do_not_count() -> None:
    job, *_ = rendered.indexed()
    ignore, fail = job["spec"]["podFailurePolicy"]["rules"]
    assert (ignore["action"], ignore["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
    assert (fail["action"], fail["onExitCodes"]["values"]) == ("FailJob", [2, 3, 4])
    assert rendered.template(job)["spec"]["restartPolicy"] == "Never"


def test_the_queue_of_the_section_serves_where_none_is_given() -> None:
    job, *_ = indexed_job(rendered.app(), rendered.job(queue="mine"), queue=None, namespace="sparta")
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "mine"
    with pytest.raises(ConfigError, match="--cfg queue=NAME"):
        indexed_job(rendered.app(), rendered.job(), queue=None, namespace="sparta")


def test_two_jobs_of_one_name_are_two() -> None:
    first, second = (rendered.indexed()[0]["metadata"]["name"] for _ in range(2))
    assert first != second


def test_what_comes_with_the_job_goes_with_it() -> None:
    objects = rendered.indexed()
    others = adopt(objects, "1-2-3")
    assert [one["kind"] for one in others] == ["Service", "NetworkPolicy"]
    for thing in others:
        (owner,) = thing["metadata"]["ownerReferences"]
        assert owner == {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "name": objects[0]["metadata"]["name"],
            "uid": "1-2-3",
        }


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda app: app.roles.clear(), "0 roles"),
        (lambda app: app.roles.append(app.roles[0]), "2 roles"),
        (lambda app: app.roles[0].mounts.append("/data"), "give volumes"),
    ],
)
def test_what_is_no_job_is_refused(change: Any, words: str) -> None:
    app = rendered.app()
    change(app)
    with pytest.raises(ConfigError, match=words):
        indexed_job(app, rendered.job(), queue="q", namespace="sparta")
