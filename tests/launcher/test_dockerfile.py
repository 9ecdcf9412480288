"""The Dockerfile against the repository: it cannot be built here, so every line that can go stale is compared."""

import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from sparta.launcher.kubernetes.pod import WRITABLE
from sparta.service.kubernetes_settings import KubernetesSettings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "launcher/Dockerfile").read_text()


def instructions() -> list[tuple[str, str]]:
    """Every instruction with its arguments, lines joined."""
    lines = [line for line in TEXT.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    return [(line.split()[0], line.split(None, 1)[1]) for line in joined.splitlines()]


def of(kind: str) -> list[str]:
    return [arguments for name, arguments in instructions() if name == kind]


def pins(text: str) -> dict[str, str]:
    return dict(re.findall(r"^(?:.*\s)?([A-Za-z0-9._-]+)==([0-9][^\s]*)", text, re.MULTILINE))


def test_every_instruction_is_one() -> None:
    known = {
        "ARG",
        "FROM",
        "ENV",
        "RUN",
        "COPY",
        "USER",
        "WORKDIR",
        "EXPOSE",
        "HEALTHCHECK",
        "ENTRYPOINT",
        "CMD",
    }
    assert {name for name, _ in instructions()} == known


def test_every_source_is_there_and_not_ignored() -> None:
    ignore = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert ignore[0] == "*"
    kept = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    copied = {
        source
        for arguments in of("COPY")
        if not arguments.startswith("--from")
        for source in arguments.split()[:-1]
    }
    assert copied == kept
    assert all((ROOT / source).exists() for source in copied)


def test_all_that_the_package_is_made_of_is_copied() -> None:
    setup = (ROOT / "pyproject.toml").read_text()
    folders = {name.split(".")[1] for name in re.findall(r'^    "(sparta\.[a-z._]+)",$', setup, re.MULTILINE)}
    assert {f"{folder} {folder}" for folder in folders} <= set(of("COPY"))


def test_versions_and_their_order_are_those_of_make_install() -> None:
    made = pins((ROOT / "Makefile").read_text())
    assert pins(TEXT) == made
    assert set(made) == {"torch", "torchrec"}
    installs = [run for run in of("RUN") if "pip install" in run]
    what = ["torch==", "-r requirements.txt", "--no-deps torchrec==", "$EXTRA", "--no-deps wheels/"]
    assert len(installs) == len(what)
    for run, words in zip(installs, what, strict=True):
        assert words in run


@pytest.mark.parametrize("variant, build", [("cpu", "fbgemm_gpu-cpu"), ("cuda", "fbgemm_gpu")])
def test_each_variant_has_its_build_of_fbgemm_and_all_else_alike(
    variant: str, build: str, tmp_path: Path
) -> None:
    (script,) = [run for run in of("RUN") if run.startswith("case")]
    ours = (ROOT / "requirements.txt").read_text()
    (tmp_path / "requirements.txt").write_text(ours)
    subprocess.run(["sh", "-ec", script], cwd=tmp_path, env={**os.environ, "VARIANT": variant}, check=True)
    found, expected = pins((tmp_path / "requirements.txt").read_text()), pins(ours)
    assert found.pop(build) == expected.pop("fbgemm_gpu-cpu")
    assert found == expected


def test_another_variant_is_refused(tmp_path: Path) -> None:
    (script,) = [run for run in of("RUN") if run.startswith("case")]
    environment = {**os.environ, "VARIANT": "tpu"}
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "VARIANT tpu: neither cpu nor cuda\n")


def test_stages_are_pinned_and_each_variant_is_one() -> None:
    arguments = dict(line.split("=", 1) for line in of("ARG") if "=" in line)
    assert arguments["VARIANT"] == "cpu"
    assert re.fullmatch(r"3\.11\.\d+-slim-[a-z]+", arguments["PYTHON"])
    stages = [re.fullmatch(r"(\S+)(?: AS (\w+))?", line) for line in of("FROM")]
    assert [stage and stage.groups() for stage in stages] == [
        ("python:${PYTHON}", "build"),
        ("python:${PYTHON}", "cpu"),
        ("cpu", "cuda"),
        ("${VARIANT}", None),
    ]
    # What is compiled or downloaded stays in the first stage.
    last = TEXT.split("FROM ${VARIANT}")[1]
    assert "pip" not in last
    assert "COPY --from=build /opt/sparta /opt/sparta" in last


def test_nobody_is_root_and_the_cluster_knows_who_it_is() -> None:
    (user,) = of("USER")
    number = KubernetesSettings().user
    assert user == f"{number}:{number}"
    assert any(f"useradd --uid {number} " in run for run in of("RUN"))
    after = [name for name, _ in instructions()]
    assert "RUN" not in after[after.index("USER") :]


def test_caches_are_where_pods_have_them() -> None:
    last = dict(word.split("=", 1) for word in of("ENV")[-1].split())
    for name in ("NUMBA_CACHE_DIR", "TRITON_CACHE_DIR", "MPLCONFIGDIR"):
        assert last[name] == WRITABLE[name]


@pytest.mark.parametrize("status, healthy", [(200, True), (503, False)])
def test_the_health_check_asks_healthz(status: int, healthy: bool) -> None:
    asked = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    (line,) = of("HEALTHCHECK")
    command = json.loads(line[line.index("[") :])
    assert command[0] == "python"
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.handle_request).start()
        environment = {**os.environ, "SPARTA_METRICS_PORT": str(server.server_port)}
        done = subprocess.run([sys.executable, *command[1:]], env=environment, capture_output=True)
    assert asked == ["/healthz"]
    assert (done.returncode == 0) == healthy
