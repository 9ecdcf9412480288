"""What `sparta submit` would send: valid, and allowed, reached and watched by what the overlays set up."""

import re
from typing import Any

import jsonschema
import kubernetes_validate
import pytest

from sparta.launcher.kubernetes import adopt, lint
from tests.k8s.kustomize import Object, render
from tests.k8s.strict import check, needs_crds
from tests.launcher.kubernetes import rendered

FULL = rendered.job(
    labels={"team": "ads"},
    annotations={"note": "a training"},
    node_selector={"gpu": "h200"},
    tolerations=[
        {"key": "nvidia.com/gpu", "effect": "NoSchedule"},
        {"key": "spot", "operator": "Equal", "value": "yes", "effect": "NoExecute", "seconds": 60},
        {},
    ],
    secret_env={"AWS_SECRET_ACCESS_KEY": "storage/secret-key"},
    priority_class="research",
    service_account="trainer",
    grace_seconds=120,
    shm_gb=64,
)
JOBS = {
    "2 nodes x 8 GPUs": {},
    "one node": {"nodes": 1, "ranks": 2, "gpu": False},
    "elastic, retried": {"nodes": 4, "least": 2, "retries": 3},
    "another verb": {"verb": "evaluate"},
}
every_job = pytest.mark.parametrize("options", JOBS.values(), ids=JOBS)
sections = pytest.mark.parametrize("job", [rendered.job(), FULL], ids=["plain", "full"])


@needs_crds
@every_job
@sections
def test_the_volcano_job_is_valid(options: dict[str, Any], job: Any) -> None:
    done = rendered.volcano(job, **options)
    check(done)
    lint([done])


@every_job
@sections
def test_the_indexed_job_is_valid(options: dict[str, Any], job: Any) -> None:
    objects = rendered.indexed(job, **options)
    for thing in objects:
        check(thing)
    lint(objects)
    for thing in adopt(objects, "6d5f3b3c-0000-4000-8000-000000000000"):
        check(thing)


@needs_crds
def test_a_field_too_many_in_a_pod_is_refused() -> None:
    for place in (rendered.template, rendered.container):
        for done in (rendered.volcano(), rendered.indexed()[0]):
            place(done)["restartsPolicy"] = "Never"
            with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
                check(done)


def pods(overlay: str) -> Object:
    """A pod template of the overlay's scheduler, with the labels that its controller adds."""
    thing = rendered.indexed()[0] if overlay == "kueue" else rendered.volcano()
    template: Object = rendered.template(thing)
    name = {"batch.kubernetes.io/job-name": thing["metadata"]["name"]}
    template["metadata"]["labels"] |= name if overlay == "kueue" else {}
    return template


def selects(selector: Object, labels: dict[str, str]) -> bool:
    """A label selector, of the kinds that we use."""
    asked = selector.get("matchExpressions", [])
    assert {one["operator"] for one in asked} <= {"Exists"}
    return (
        all(one["key"] in labels for one in asked)
        and selector.get("matchLabels", {}).items() <= labels.items()
    )


@pytest.mark.parametrize("overlay", ["gpu", "kueue"])
def test_who_submits_may_create_what_is_sent(overlay: str) -> None:
    (role,) = [one for one in render(overlay) if one["kind"] == "Role"]
    for thing in rendered.indexed() if overlay == "kueue" else [rendered.volcano()]:
        group, plural = (
            thing["apiVersion"].rpartition("/")[0],
            re.sub(r"y$", "ie", thing["kind"].lower()) + "s",
        )
        assert any(
            group in rule["apiGroups"] and plural in rule["resources"] and "create" in rule["verbs"]
            for rule in role["rules"]
        ), (group, plural)


@pytest.mark.parametrize("overlay", ["gpu", "kueue"])
def test_the_cluster_knows_the_pods_by_their_labels(overlay: str) -> None:
    labels = pods(overlay)["metadata"]["labels"]
    spec = {(one["kind"], one["metadata"]["name"]): one.get("spec") for one in render(overlay)}
    assert selects(spec["PodMonitor", "sparta"]["selector"], labels)
    assert selects(spec["PodDisruptionBudget", "sparta"]["selector"], labels)
    for policy in ("default-deny", "metrics", "egress"):
        assert selects(spec["NetworkPolicy", policy]["podSelector"], labels)


def test_the_ranks_of_an_indexed_job_and_only_they_reach_each_other() -> None:
    job, service, policy = rendered.indexed()
    labels = pods("kueue")["metadata"]["labels"]
    mine = {**labels, "batch.kubernetes.io/job-name": job["metadata"]["name"]}
    assert selects(policy["spec"]["podSelector"], mine)
    (rule,) = policy["spec"]["ingress"]
    assert "ports" not in rule
    assert selects(rule["from"][0]["podSelector"], mine)
    assert not selects(rule["from"][0]["podSelector"], labels), "pods of another job with the same name"
    assert service["spec"]["selector"].items() <= mine.items()


@pytest.mark.parametrize("overlay", ["gpu", "kueue"])
def test_prometheus_may_reach_the_ports_of_every_rank(overlay: str) -> None:
    (policy,) = [one for one in render(overlay) if one["metadata"]["name"] == "metrics"]
    (allowed,) = policy["spec"]["ingress"][0]["ports"]
    (container,) = pods(overlay)["spec"]["containers"]
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    assert [ports[f"metrics-{rank}"] for rank in range(8)] == list(range(9400, 9408))
    assert all(allowed["port"] <= ports[f"metrics-{rank}"] <= allowed["endPort"] for rank in range(8))
    assert not allowed["port"] <= ports["rdzv"] <= allowed["endPort"]


@pytest.mark.parametrize("overlay", ["gpu", "kueue"])
def test_pods_of_the_restricted_namespace_keep_its_rules(overlay: str) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards, `restricted`."""
    spec = pods(overlay)["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    allowed = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    for volume in spec["volumes"]:
        assert len(set(volume) & allowed) == 1
        assert set(volume) <= allowed | {"name"}
    for container in spec["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["readOnlyRootFilesystem"] is True
        assert not context.get("privileged")
        assert not any("hostPort" in port for port in container["ports"])


@pytest.mark.parametrize("overlay", ["gpu", "kueue"])
def test_the_claims_and_the_queue_that_jobs_name_are_there(overlay: str) -> None:
    there = {(one["kind"], one["metadata"]["name"]) for one in render(overlay)}
    volumes = pods(overlay)["spec"]["volumes"]
    claims = {one["persistentVolumeClaim"]["claimName"] for one in volumes if "persistentVolumeClaim" in one}
    assert {("PersistentVolumeClaim", claim) for claim in claims} <= there
    assert (("LocalQueue" if overlay == "kueue" else "Queue"), "sparta") in there
