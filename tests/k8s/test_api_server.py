"""A real API server takes it all: dry runs on the server that KUBECONFIG names, where there is one."""

import os
import shutil
import subprocess

import pytest
import yaml

from tests.k8s.kustomize import K8S, OVERLAYS
from tests.launcher.kubernetes import rendered

pytestmark = [
    pytest.mark.skipif("KUBECONFIG" not in os.environ, reason="KUBECONFIG names no cluster"),
    pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl"),
]


def served(group: str) -> bool:
    done = subprocess.run(
        ["kubectl", "api-resources", "--api-group", group, "-o", "name"], capture_output=True
    )
    return bool(done.stdout.strip())


def dry_run(text: str) -> None:
    command = ["kubectl", "apply", "--dry-run=server", "--validate=strict", "-f", "-"]
    done = subprocess.run(command, input=text, text=True, capture_output=True)
    # Objects in a namespace that a dry run did not make are not the point.
    wrong = [line for line in done.stderr.splitlines() if 'namespaces "sparta" not found' not in line]
    assert not wrong, wrong


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay(overlay: str) -> None:
    for group in (
        "monitoring.coreos.com",
        "kueue.x-k8s.io" if overlay == "kueue" else "scheduling.volcano.sh",
    ):
        if not served(group):
            pytest.skip(f"the cluster does not serve {group}")
    path = K8S / "overlays" / overlay
    dry_run(subprocess.run(["kubectl", "kustomize", path], capture_output=True, text=True, check=True).stdout)


def test_the_indexed_job() -> None:
    dry_run(yaml.safe_dump_all(rendered.indexed()))


def test_the_volcano_job() -> None:
    if not served("batch.volcano.sh"):
        pytest.skip("the cluster does not serve batch.volcano.sh")
    dry_run(yaml.safe_dump(rendered.volcano()))
