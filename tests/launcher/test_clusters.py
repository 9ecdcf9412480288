"""`-s kubernetes` and `-s kueue`: sent, looked at, followed and cancelled; the API server is a fake."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sparta.launcher.cli import main
from tests.launcher.fake_cluster import Cluster, serving
from tests.launcher.test_cli import modules_after

pytest.importorskip("sparta.launcher.kubernetes")

JOB = "{name: fake, data: {path: '${DATA}/x'}, model: {name: deepfm}, train: {ranks: 2}}"
RUNS = ["--mount", "type=volume,src=runs,dst=/runs"]
COMMON = ["--image", "a/b", "--nodes", "2", "--ranks", "8", "--run-dir", "/runs/r1", *RUNS]
SUBMIT = {
    scheduler: ["submit", "job.yaml", "-s", scheduler, "--cfg", "queue=q,namespace=ns", *COMMON]
    for scheduler in ("kubernetes", "kueue")
}
KINDS = {"kubernetes": ["Job"], "kueue": ["Job", "Service", "NetworkPolicy"]}
JOBS = {"kubernetes": "/apis/batch.volcano.sh/v1alpha1", "kueue": "/apis/batch/v1"}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "job.yaml").write_text(JOB)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    return tmp_path


@pytest.fixture
def cluster(work: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    import kubernetes.config.kube_config as kube_config

    # The client reads the variable when it is imported.
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(work / "kubeconfig"))
    made = Cluster()
    with serving(made, work / "kubeconfig", "ns"):
        yield made


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    """What a command prints on standard output; on the other nothing."""
    assert main(list(words)) == code
    out, err = capsys.readouterr()
    assert err == ""
    return out


def finish(cluster: Cluster, scheduler: str, *, failed: bool = False) -> None:
    """Have the one job end, with two pods of two ranks each."""
    (path,) = [path for path in cluster.objects if path.startswith(f"{JOBS[scheduler]}/namespaces/ns/jobs/")]
    name = path.rpartition("/")[2]
    if scheduler == "kubernetes":
        count = {f"ranks-{k}": {"phase": {"Succeeded": 1}} for k in range(2)}
        phase = "Failed" if failed else "Completed"
        cluster.objects[path]["status"] = {"state": {"phase": phase}, "taskStatusCount": count}
        labels = [{"volcano.sh/job-name": name, "torchx.pytorch.org/replica-id": str(k)} for k in range(2)]
    else:
        condition = {"type": "Failed" if failed else "Complete", "status": "True", "message": "so it ended"}
        cluster.objects[path]["status"] = {"conditions": [condition]}
        prefix = "batch.kubernetes.io/job-"
        labels = [{f"{prefix}name": name, f"{prefix}completion-index": str(k)} for k in range(2)]
    for k in range(2):
        cluster.pod("ns", f"{name}-{k}-old", labels[k], f"[{k}] of the attempt before\n")
        cluster.pod(
            "ns", f"{name}-{k}-x", labels[k], f"[{2 * k}] first\n[{2 * k + 1}] second\ntorchrun's own\n"
        )


@pytest.mark.parametrize("scheduler", list(SUBMIT))
def test_a_job_goes_its_way(cluster: Cluster, scheduler: str, capsys: pytest.CaptureFixture[str]) -> None:
    handle = said(capsys, *SUBMIT[scheduler]).strip()
    assert handle.startswith(f"{scheduler}://sparta/ns:fake-")
    assert cluster.kinds() == KINDS[scheduler]
    job = next(iter(cluster.objects.values()))
    for thing in list(cluster.objects.values())[1:]:  # goes with the job
        assert thing["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]
    assert said(capsys, "list", "-s", scheduler).split() == [handle, "PENDING"]
    assert said(capsys, "status", handle, "--exit-code", code=255).startswith("handle")

    finish(cluster, scheduler)
    assert said(capsys, "list", "-s", scheduler, "-n", "ns").split() == [handle, "SUCCEEDED"]
    assert "SUCCEEDED" in said(capsys, "status", handle, "--exit-code")
    everything = ["[0] first", "[1] second", "[2] first", "[3] second", *["torchrun's own"] * 2]
    assert sorted(said(capsys, "logs", handle).splitlines()) == sorted(everything)
    assert said(capsys, "logs", handle, "--rank", "3").splitlines() == ["[3] second"]
    assert said(capsys, "cancel", handle) == f"{handle} SUCCEEDED\n"


@pytest.mark.parametrize("scheduler", list(SUBMIT))
def test_following_shows_every_attempt(
    cluster: Cluster, scheduler: str, capsys: pytest.CaptureFixture[str]
) -> None:
    handle = said(capsys, *SUBMIT[scheduler]).strip()
    finish(cluster, scheduler, failed=True)
    lines = said(capsys, "logs", handle, "--follow").splitlines()
    assert {"[0] of the attempt before", "[1] of the attempt before"} <= set(lines)
    assert len(lines) == 8
    assert said(capsys, "status", handle, "--exit-code", code=1).split()[:4] == [
        "handle",
        handle,
        "state",
        "FAILED",
    ]


@pytest.mark.parametrize("scheduler", list(SUBMIT))
def test_a_job_is_cancelled_by_removing_it(
    cluster: Cluster, scheduler: str, capsys: pytest.CaptureFixture[str]
) -> None:
    handle = said(capsys, *SUBMIT[scheduler]).strip()
    assert said(capsys, "cancel", handle) == f"{handle} CANCELLED\n"
    (deleted,) = [line for line in cluster.asked if line.startswith("DELETE")]
    assert deleted.startswith(f"DELETE {JOBS[scheduler]}/namespaces/ns/jobs/fake-")
    if scheduler == "kueue":
        assert "propagationPolicy=Background" in deleted
    assert main(["status", handle]) == 2
    assert (
        capsys.readouterr().err == f"error: {handle}: no such job; `sparta list -s {scheduler}` shows them\n"
    )


@pytest.mark.parametrize("scheduler", list(SUBMIT))
def test_a_dry_run_prints_what_is_sent_and_asks_nobody(
    cluster: Cluster, scheduler: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = list(yaml.safe_load_all(said(capsys, *SUBMIT[scheduler], "--dry-run")))
    assert cluster.asked == []
    said(capsys, *SUBMIT[scheduler])
    for mine, sent in zip(shown, cluster.objects.values(), strict=True):
        assert mine["kind"] == sent["kind"]
        assert same(mine["spec"], sent["spec"])


@pytest.mark.parametrize("scheduler", list(SUBMIT))
def test_what_is_sent_is_valid_field_by_field(
    work: Path, scheduler: str, capsys: pytest.CaptureFixture[str]
) -> None:
    strict = pytest.importorskip("tests.k8s.strict")
    if scheduler == "kubernetes" and not any(strict.CRDS.glob("*.yaml")):
        pytest.skip(f"no definitions of Volcano's objects in {strict.CRDS}")
    words = ["--env", "A=b", "--retries", "2"]
    words += ["--set", "train.device=cuda", "--dry-run"]
    objects = list(yaml.safe_load_all(said(capsys, *SUBMIT[scheduler], *words)))
    assert [thing["kind"] for thing in objects] == KINDS[scheduler]
    for thing in objects:
        strict.check(thing)
    assert yaml.safe_dump(objects).count("nvidia.com/gpu: '8'") == {"kubernetes": 4, "kueue": 2}[scheduler]


def same(a: Any, b: Any) -> bool:
    """Whether two objects differ in no more than the names that are made for them."""
    left, right = (re.sub(r"fake-[a-z0-9]+", "fake", yaml.safe_dump(thing, width=10**6)) for thing in (a, b))
    return left == right


@pytest.mark.parametrize("scheduler", list(SUBMIT))
def test_the_job_file_may_name_the_queue_and_the_machines_what_they_have(
    work: Path, scheduler: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["submit", "job.yaml", "-s", scheduler, "--image", "i", *RUNS, "--dry-run"]
    asked = ["--cpu", "12", "--gpu", "2", "--memory-gb", "64", "--set", "kubernetes.queue=mine"]
    text = said(capsys, *words, *asked)
    assert "mine" in text
    assert "nvidia.com/gpu: '2'" in text
    assert re.search(r"cpu: (12000m|'12'|11900m)", text)


@pytest.mark.parametrize("scheduler", list(SUBMIT))
def test_a_dry_run_loads_no_torch(work: Path, scheduler: str) -> None:
    loaded = modules_after(f"from sparta.launcher.cli import main; main({[*SUBMIT[scheduler], '--dry-run']})")
    assert "torchx.runner" in loaded
    assert not loaded & {"torch", "numpy", "pyarrow"}


@pytest.mark.parametrize(
    "words, message",
    [
        (["submit", "job.yaml", "-s", "kubernetes"], "--image is missing: kubernetes runs containers"),
        (
            ["submit", "job.yaml", "-s", "kubernetes", "--image", "i", *RUNS],
            "kubernetes: --cfg queue=... is missing",
        ),
        (
            ["submit", "job.yaml", "-s", "kueue", "--image", "i", *RUNS],
            "queue: Kueue needs the name of a LocalQueue",
        ),
        (
            ["submit", "job.yaml", "-s", "kueue", "--image", "i", "--cfg", "service_account=a"],
            "--cfg service_account: unknown to kueue; it knows namespace, queue",
        ),
        (
            ["submit", "job.yaml", "-s", "kubernetes", "--image", "i", "--cfg", "queue=q"],
            "run directory /runs/fake: on no storage",
        ),
        ([*SUBMIT["kueue"], "--nodes", "2:1"], "--nodes 2:1: needs a machine, and no more at least"),
        ([*SUBMIT["kueue"], "--retries", "-1"], "argument --retries: "),
        (
            [*SUBMIT["kubernetes"], "--set", "kubernetes.priority_class=Bad Name"],
            "Volcano job fake",
        ),
        ([*SUBMIT["kueue"], "--set", "name=forbidden"], "kueue: the API server says 403: you may not"),
        (
            [*SUBMIT["kubernetes"], "--set", "name=forbidden"],
            "kubernetes: the API server says 403: you may not",
        ),
        (["logs", "kubernetes://sparta/ns:nix"], "kubernetes://sparta/ns:nix: no such job"),
        (["cancel", "kueue://sparta/ns:nix"], "kueue://sparta/ns:nix: no such job"),
    ],
)
def test_mistakes_are_one_line(
    cluster: Cluster, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("scheduler", list(SUBMIT))
def test_without_a_cluster_the_way_to_one_is_told(
    work: Path, scheduler: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import kubernetes.config.kube_config as kube_config

    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(work / "nowhere"))
    assert main(SUBMIT[scheduler]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: no cluster: ")
    assert err.endswith("; set KUBECONFIG to the file of one\n")
    assert err.count("\n") == 1


def test_a_cluster_that_does_not_answer_is_told_in_one_line(
    cluster: Cluster, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = work / "kubeconfig"
    config = yaml.safe_load(path.read_text())
    config["clusters"][0]["cluster"]["server"] = "http://127.0.0.1:9"
    path.write_text(yaml.safe_dump(config))
    assert main(["list", "-s", "kueue"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: kueue: no answer from the API server (")
    assert err.count("\n") == 1
