"""Every overlay: valid to the last field, and saying what it is there for."""

import copy
import json
import re
import shutil
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from sparta.launcher.kubernetes import lint
from sparta.models.errors import ConfigError
from tests.k8s.kustomize import K8S, OVERLAYS, Object, by_hand, by_kubectl, render
from tests.k8s.strict import check, needs_crds
from tests.launcher.kubernetes import rendered

every_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


def key(thing: Object) -> tuple[str, str]:
    return thing["kind"], thing["metadata"]["name"]


def find(overlay: str, kind: str, name: str = "sparta") -> Any:
    (found,) = [one for one in render(overlay) if key(one) == (kind, name)]
    return found


@needs_crds
@every_overlay
def test_every_object_is_valid(overlay: str) -> None:
    objects = render(overlay)
    assert len(objects) >= 12
    for thing in objects:
        check(thing)
    lint(objects)


@needs_crds
@every_overlay
def test_a_field_too_many_is_refused_in_every_object(overlay: str) -> None:
    for thing in render(overlay):
        if "spec" in thing:
            thing["spec"]["spellling"] = "wrong"
        else:
            thing["spellling"] = "wrong"
        with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
            check(thing)


@every_overlay
def test_names_are_refused_in_every_object(overlay: str) -> None:
    for thing in render(overlay):
        thing["metadata"]["name"] = "Not_a_name"
        with pytest.raises(ConfigError, match="'Not_a_name' is no name"):
            lint([thing])


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl, whose rendering is the other half")
@every_overlay
def test_our_rendering_is_that_of_kubectl(overlay: str) -> None:
    folder = K8S / "overlays" / overlay
    assert sorted(by_hand(folder), key=key) == sorted(by_kubectl(folder), key=key)


@every_overlay
def test_everything_of_ours_is_in_our_namespace(overlay: str) -> None:
    everywhere = {"Namespace", "Queue", "ClusterQueue", "ResourceFlavor"}
    for thing in render(overlay):
        namespace = thing["metadata"].get("namespace")
        assert namespace == (None if thing["kind"] in everywhere else "sparta"), key(thing)


def test_every_file_is_used() -> None:
    used = set()
    for path in K8S.rglob("kustomization.yaml"):
        wanted = yaml.safe_load(path.read_text())
        used.add(path)
        used |= {(path.parent / name).resolve() for name in wanted["resources"]}
        used |= {path.parent / name for one in wanted.get("configMapGenerator", []) for name in one["files"]}
    files = {path for path in K8S.rglob("*") if path.suffix in (".yaml", ".json")}
    assert files == {path for path in used if path.is_file()}


@pytest.mark.parametrize(
    "overlay, kinds",
    [("cpu", {"Queue"}), ("gpu", {"Queue"}), ("kueue", {"ClusterQueue", "LocalQueue", "ResourceFlavor"})],
)
def test_the_queues_are_those_of_the_scheduler(overlay: str, kinds: set[str]) -> None:
    found = {one["kind"] for one in render(overlay)}
    assert found & {"Queue", "ClusterQueue", "LocalQueue", "ResourceFlavor"} == kinds


def test_gpus_are_for_the_queue_of_gpus() -> None:
    assert "nvidia.com/gpu" in find("gpu", "Queue")["spec"]["capability"]
    assert "nvidia.com/gpu" not in find("cpu", "Queue")["spec"]["capability"]


@every_overlay
def test_the_namespace_is_restricted(overlay: str) -> None:
    labels = find(overlay, "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@every_overlay
def test_who_submits_may_do_no_more_than_that(overlay: str) -> None:
    rules = find(overlay, "Role", "sparta-submit")["rules"]
    assert "*" not in json.dumps(rules)
    assert not {"secrets", "configmaps", "pods/exec"} & {one for rule in rules for one in rule["resources"]}
    writes = {"create", "delete", "update", "patch", "deletecollection"}
    written = {one for rule in rules if writes & set(rule["verbs"]) for one in rule["resources"]}
    assert written == ({"jobs", "services", "networkpolicies"} if overlay == "kueue" else {"jobs"})
    (subject,) = find(overlay, "RoleBinding", "sparta-submit")["subjects"]
    assert key(find(overlay, "ServiceAccount", "sparta-submit")) == (subject["kind"], subject["name"])


@every_overlay
def test_nothing_goes_in_or_out_unless_it_is_named(overlay: str) -> None:
    spec = find(overlay, "NetworkPolicy", "default-deny")["spec"]
    assert spec == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    (rule,) = find(overlay, "NetworkPolicy", "metrics")["spec"]["ingress"]
    (ports,) = rule["ports"]
    assert ports["port"] <= 9400 < 9407 <= ports["endPort"]
    assert rule["from"][0]["namespaceSelector"]["matchLabels"] == {
        "kubernetes.io/metadata.name": "monitoring"
    }
    for peer in (
        to for rule in find(overlay, "NetworkPolicy", "egress")["spec"]["egress"] for to in rule["to"]
    ):
        assert peer.keys() & {"podSelector", "namespaceSelector", "ipBlock"}


@every_overlay
def test_prometheus_gives_samples_the_labels_that_dashboards_ask_for(overlay: str) -> None:
    (endpoint,) = find(overlay, "PodMonitor")["spec"]["podMetricsEndpoints"]
    rules = {one["targetLabel"]: one for one in endpoint["relabelings"] if "targetLabel" in one}
    assert rules["job"]["replacement"] == "sparta"
    assert rules["name"]["sourceLabels"] == ["__meta_kubernetes_pod_label_sparta_dev_job"]
    (keep,) = [one for one in endpoint["relabelings"] if one.get("action") == "keep"]
    assert all(re.fullmatch(keep["regex"], f"metrics-{rank}") for rank in (0, 7, 15))
    assert not re.fullmatch(keep["regex"], "rdzv")


@every_overlay
def test_grafana_finds_both_dashboards(overlay: str) -> None:
    found = find(overlay, "ConfigMap", "sparta-dashboards")
    assert found["metadata"]["labels"] == {"grafana_dashboard": "1"}
    assert set(found["data"]) == {"training.json", "tables.json"}
    for text in found["data"].values():
        assert json.loads(text)["panels"]


def test_the_readme_names_what_is_there() -> None:
    text = (K8S / "README.md").read_text()
    for path in re.findall(r"`((?:base|overlays)/[a-z./]+)`", text):
        assert (K8S / path).exists(), path
    for path in K8S.glob("base/*.yaml"):
        assert path.name == "kustomization.yaml" or f"`base/{path.name}`" in text
    (section,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert rendered.job(**yaml.safe_load(section)["kubernetes"]).kubernetes.secret_env


def test_int_or_string_may_be_both_and_nothing_else() -> None:
    from tests.k8s.strict import close

    schema = close({"properties": {"port": {"x-kubernetes-int-or-string": True}}})
    for value in (80, "http"):
        jsonschema.validate({"port": value}, schema)
    for wrong in ({"port": [80]}, {"prot": 80}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(copy.deepcopy(wrong), schema)
