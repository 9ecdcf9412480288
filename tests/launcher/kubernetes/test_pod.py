"""What the job file's section makes of a pod, the same for Volcano and for an indexed job."""

import re
from typing import Any

import pytest

from sparta.launcher.kubernetes import indexed_job
from tests.launcher.kubernetes import rendered

SCHEDULERS = {
    "volcano": rendered.volcano,
    "indexed": lambda *arguments, **options: rendered.indexed(*arguments, **options)[0],
}


@pytest.fixture(params=SCHEDULERS)
def render(request: pytest.FixtureRequest) -> Any:
    return SCHEDULERS[request.param]


def variables(thing: Any) -> dict[str, Any]:
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in rendered.container(thing)["env"]}


def test_job_and_run_are_on_the_pods_beside_the_users_labels(render: Any) -> None:
    done = render(rendered.job(labels={"team": "ads"}, annotations={"note": "x"}))
    for labels in (done["metadata"]["labels"], rendered.template(done)["metadata"]["labels"]):
        assert labels["sparta.dev/job"] == "clicks"
        assert labels["sparta.dev/run"] == "clicks-7", "the run directory's name"
        assert labels["team"] == "ads"
    assert rendered.template(done)["metadata"]["annotations"]["note"] == "x"


def test_where_it_may_run(render: Any) -> None:
    asked = [
        {"key": "gpu", "effect": "NoSchedule"},
        {"key": "spot", "operator": "Equal", "value": "1", "effect": "NoExecute", "seconds": 5},
    ]
    spec = rendered.template(
        render(rendered.job(tolerations=asked, node_selector={"a/b": "c"}, service_account="me"))
    )["spec"]
    assert spec["tolerations"] == [
        {"key": "gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "spot", "operator": "Equal", "value": "1", "effect": "NoExecute", "tolerationSeconds": 5},
    ]
    assert spec["nodeSelector"] == {"a/b": "c"}
    assert spec["serviceAccountName"] == "me"


def test_secrets_are_named_and_not_written(render: Any) -> None:
    done = render(rendered.job(secret_env={"AWS_SECRET_ACCESS_KEY": "storage/secret"}))
    assert variables(done)["AWS_SECRET_ACCESS_KEY"] == {"secretKeyRef": {"name": "storage", "key": "secret"}}


def test_libraries_write_where_the_pod_may(render: Any) -> None:
    done = render(rendered.job(scratch_gb=2))
    mounts = {one["mountPath"]: one for one in rendered.container(done)["volumeMounts"]}
    volumes = {one["name"]: one for one in rendered.template(done)["spec"]["volumes"]}
    assert volumes[mounts["/tmp"]["name"]]["emptyDir"] == {"sizeLimit": "2048Mi"}
    for name in ("HOME", "NUMBA_CACHE_DIR", "TRITON_CACHE_DIR", "MPLCONFIGDIR"):
        assert re.match(r"/tmp(/|$)", variables(done)[name])


def test_shared_memory_has_the_limit_that_is_asked_for(render: Any) -> None:
    def shm(job: Any) -> Any:
        volumes = rendered.template(render(job))["spec"]["volumes"]
        return next(one["emptyDir"] for one in volumes if one["name"] == "dshm")

    assert shm(rendered.job()) == {"medium": "Memory"}
    assert shm(rendered.job(shm_gb=1.5)) == {"medium": "Memory", "sizeLimit": "1536Mi"}


def test_what_the_container_has_it_keeps(render: Any) -> None:
    done = render()
    mounts = {one["mountPath"] for one in rendered.container(done)["volumeMounts"]}
    assert {"/data", "/runs", "/dev/shm", "/tmp"} == mounts
    assert variables(done)["SPARTA_METRICS_PORT"] == "9400"
    assert "name: clicks" in variables(done)["SPARTA_JOB"]


@pytest.mark.parametrize("ranks", [1, 3, 8])
def test_every_rank_has_a_port_for_its_metrics(render: Any, ranks: int) -> None:
    ports = {one["name"]: one["containerPort"] for one in rendered.container(render(ranks=ranks))["ports"]}
    assert ports == {"rdzv": 29500, **{f"metrics-{rank}": 9400 + rank for rank in range(ranks)}}


def test_one_process_meets_nobody() -> None:
    alone = rendered.app(nodes=1, gpu=False, verb="prepare")
    alone.roles[0].args = ["-m", "sparta.service", "prepare", "spec.yaml", "--out", "/data/clicks"]
    job, *_ = indexed_job(alone, rendered.job(), queue="q", namespace="sparta")
    assert rendered.container(job)["ports"] == []


@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_only_trainings_are_asked_how_they_are(render: Any, verb: str) -> None:
    container = rendered.container(render(verb=verb))
    assert [one["name"] for one in container["ports"]] == ["rdzv"]
    assert not any(key.endswith("Probe") for key in container)


def test_a_pod_that_loads_long_is_not_killed(render: Any) -> None:
    probes = {"startup_seconds": 100, "down_seconds": 61}
    container = rendered.container(render(rendered.job(probes=probes)))
    startup, live, ready = (container[f"{one}Probe"] for one in ("startup", "liveness", "readiness"))
    assert startup["failureThreshold"] * startup["periodSeconds"] >= 100
    assert live["failureThreshold"] * live["periodSeconds"] >= 61
    assert (startup["httpGet"]["path"], live["httpGet"]["path"]) == ("/readyz", "/healthz")
    assert ready["httpGet"] == startup["httpGet"]
    assert {one["httpGet"]["port"] for one in (startup, live, ready)} == {"metrics-0"}


def test_probes_can_be_left_out_but_not_the_metrics(render: Any) -> None:
    container = rendered.container(render(rendered.job(probes={"enabled": False})))
    assert not any(key.endswith("Probe") for key in container)
    assert "metrics-0" in [one["name"] for one in container["ports"]]


@pytest.mark.parametrize("said, seconds", [(None, 23), (60, 60)])
def test_there_is_time_for_a_last_checkpoint(render: Any, said: int | None, seconds: int) -> None:
    spec = rendered.template(render(rendered.job(grace_seconds=said)))["spec"]
    assert spec["terminationGracePeriodSeconds"] == seconds


def test_ranks_wait_for_slow_pods_as_long_as_the_cluster_does(
    render: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.distributed.run import config_from_args, parse_args

    done = render(rendered.job(probes={"startup_seconds": 1234}))
    monkeypatch.setenv("PET_RDZV_CONF", variables(done)["PET_RDZV_CONF"])
    command = rendered.container(done)["command"]
    config, *_ = config_from_args(parse_args(command[command.index("torch.distributed.run") + 1 :]))
    assert config.rdzv_configs["join_timeout"] == config.rdzv_configs["read_timeout"] == "1234"
