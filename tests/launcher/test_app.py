"""A job as TorchX takes it: what travels with it, and what is asked of the machines."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torchx.specs import AppDef, Role, macros

from sparta.launcher.app import Machines, alone, on_ranks, training, unmounted
from sparta.launcher.resources import RESOURCES
from sparta.models.errors import ConfigError

JOB = "{name: clicks, data: {path: '${DATA}/x'}, model: {name: deepfm}, train: {ranks: 2}, tolerate: {restarts: 5}}"

CLAIM = ["type=volume", "src=runs", "dst=/runs"]


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    return path


def only(app: AppDef) -> Role:
    """Its one role, as a scheduler starts it."""
    (role,) = app.roles
    values = macros.Values(img_root="", app_id="id-1", replica_id="0", rank0_env="FIRST")
    return values.apply(role)


def option(role: Role, name: str) -> str:
    return str(role.args[role.args.index(name) + 1])


def test_the_text_travels_with_its_overrides_and_is_resolved_where_it_arrives(job: Path) -> None:
    app, checked = training(
        job, ["--set", "train.epochs=3", "--from", "x"], None, Machines(image="i", mounts=CLAIM)
    )
    role = only(app)
    text = yaml.safe_load(role.env["SPARTA_JOB"])
    assert (text["train"]["epochs"], text["data"]["path"]) == (3, "${DATA}/x")
    assert checked.train.epochs == 3
    service = role.args[role.args.index("sparta.service") :]
    assert service == [
        *("sparta.service", "train", "env:SPARTA_JOB", "--run-dir", "/runs/clicks", "--resume"),
        *("--from", "x"),
    ]


def test_ranks_and_restarts_are_the_jobs_unless_said(job: Path) -> None:
    role = only(training(job, [], "/runs/a", Machines(image="i", mounts=CLAIM))[0])
    assert (role.num_replicas, option(role, "--nproc-per-node"), option(role, "--max-restarts")) == (
        1,
        "2",
        "5",
    )
    assert (option(role, "--run-dir"), option(role, "--rdzv-endpoint")) == ("/runs/a", "localhost:0")
    assert option(only(training(job, [], None, Machines())[0]), "--run-dir") == "runs/clicks"


def test_elastic_machines_meet_at_the_first(job: Path) -> None:
    role = only(training(job, [], None, Machines(j="1:3x2", image="i", mounts=CLAIM))[0])
    assert (role.min_replicas, role.num_replicas, option(role, "--nnodes")) == (1, 3, "1:3")
    assert (option(role, "--rdzv-endpoint"), option(role, "--rdzv-id")) == ("env:FIRST:29500", "id-1")
    assert only(training(job, [], None, Machines(j="3x2"))[0]).min_replicas is None
    whole, short = (only(training(job, [], None, Machines(j=j))[0]) for j in ("3x2", "3x"))
    assert whole.args == short.args


@pytest.mark.parametrize("j", [" ", "0", "x", "2x0", "x2", "0x2", "2:1x2", "2x2x2", "-1", "a"])
def test_a_bad_number_of_ranks_is_refused_by_name(job: Path, j: str) -> None:
    with pytest.raises(ConfigError, match=r"^-j "):
        training(job, [], None, Machines(j=j))


def test_in_a_container_the_environment_is_the_containers_and_python_the_images() -> None:
    role = only(
        on_ranks(["evaluate", "r"], name="a", machines=Machines(image="i", environment={"A": "$b,c"}))
    )
    assert (role.entrypoint, role.image, role.env["A"]) == ("python", "i", "$b,c")
    assert (role.env["SPARTA_METRICS_HOST"], role.env["SPARTA_METRICS_PORT"]) == ("0.0.0.0", "9400")


AWKWARD = st.text(st.characters(exclude_categories=["C"]), min_size=1).map(lambda text: f"x{text}")


@given(values=st.dictionaries(st.sampled_from(["A_1", "A_2"]), AWKWARD), word=AWKWARD)
def test_without_one_it_stands_in_the_command_and_nothing_is_changed(
    values: dict[str, str], word: str
) -> None:
    role = only(alone([word], name="a", machines=Machines(environment=values)))
    assert (role.entrypoint, role.env, role.image) == ("env", {}, "")
    assert role.args[-4:] == [sys.executable, "-m", "sparta.service", word]
    assert dict(pair.split("=", 1) for pair in role.args if pair.startswith("A_")) == values


def test_the_command_of_no_container_runs_here_with_its_environment() -> None:
    role = only(alone(["--help"], name="a", machines=Machines(environment={"A": "a,b 'c' $D"})))
    code = "import json, os, sys; json.dump([os.environ['A'], sys.argv[1:]], sys.stdout)"
    command = [role.entrypoint, *role.args[:-3], "-c", code, *role.args[-3:]]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    assert json.loads(done.stdout) == ["a,b 'c' $D", ["-m", "sparta.service", "--help"]]


@pytest.mark.parametrize(
    "machines, cuda, cpu, gpu",
    [
        (Machines(j="3"), True, 80, 4),
        (Machines(j="2x8"), True, 160, 8),
        (Machines(j="2"), False, 8, 0),
        (Machines(j="2", resource="sparta_gpu_2"), False, 40, 2),
        (Machines(j="1", cpu=3, gpu=1, memory_mb=5), True, 3, 1),
        (Machines(j="3", cpu=3), True, 3, 4),
        (Machines(j="2", gpu=4), False, 80, 4),
        (Machines(j="2", resource="sparta_gpu_8", cpu=96), True, 96, 8),
        (Machines(j="1", resource="gpu.small"), False, 8, 1),  # TorchX's own
    ],
)
def test_each_machine_has_what_its_ranks_need(machines: Machines, cuda: bool, cpu: int, gpu: int) -> None:
    resource = on_ranks(["evaluate", "r"], name="a", machines=machines, cuda=cuda).roles[0].resource
    assert (resource.cpu, resource.gpu) == (cpu, gpu)


def test_ranks_share_the_cores_of_their_machine() -> None:
    role = only(on_ranks(["evaluate", "r"], name="a", machines=Machines(j="2x4", image="i", cpu=10)))
    assert role.env["OMP_NUM_THREADS"] == "2"


@pytest.mark.parametrize(
    "machines, cuda, said",
    [
        (Machines(resource="sparta_gpu_3"), False, "sparta_gpu_3: no named resource; known are sparta_gpu_1"),
        (Machines(j="16"), True, "sparta_gpu_16: no named resource"),
        (Machines(mounts=["src=a"]), False, "mount src=a: type must be specified first"),
        (
            Machines(mounts=["type=volume", "scr=a"]),
            False,
            "mount type=volume,scr=a: unknown mount option scr",
        ),
        (
            Machines(mounts=["type=tape", "src=a", "dst=b"]),
            False,
            "mount type=tape,src=a,dst=b: invalid mount type",
        ),
        (Machines(mounts=["type=volume", "src=a"]), False, "mount type=volume,src=a: dst is missing; write"),
        (Machines(j="8", resource="sparta_gpu_4"), False, "8 ranks on a machine with 4 GPUs: each needs one"),
        (Machines(j="2", resource="sparta_cpu"), True, "2 ranks on a machine with 0 GPUs: each needs one"),
        (Machines(retries=-1), False, "retries -1: not a number of starts"),
        (
            Machines(environment={"SPARTA_JOB": "2"}),
            False,
            "environment variable SPARTA_JOB: tells the ranks",
        ),
    ],
)
def test_mistakes_are_named(machines: Machines, cuda: bool, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        on_ranks(["evaluate", "r"], name="a", machines=machines, cuda=cuda)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "run, image, mounts", [(None, "i", CLAIM), ("/runs/a/b", "i", CLAIM), ("/r", None, [])]
)
def test_a_run_directory_outlives_its_container(
    job: Path, run: str | None, image: str | None, mounts: list[str]
) -> None:
    app, _ = training(job, [], run, Machines(image=image, mounts=mounts))
    assert (run or "/runs/clicks") in app.roles[0].args


@pytest.mark.parametrize("run", [None, "/scratch/a", "/runs2/a"])
def test_one_that_would_not_is_refused(job: Path, run: str | None) -> None:
    mounts = CLAIM if run else []
    with pytest.raises(ConfigError, match=f"run directory {run or '/runs/clicks'}: on no storage"):
        training(job, [], run, Machines(image="i", mounts=mounts))


def test_a_dataset_that_only_the_image_can_bring_is_known(job: Path) -> None:
    for path, known in (("/data/x", "/data/x"), ("/runs/x", None), ("s3://b/x", None), ("${D}/x", None)):
        app, read = training(job, ["--set", f"data.path={path}"], None, Machines(image="i", mounts=CLAIM))
        assert unmounted(read, app) == known


def test_arguments_of_the_training_are_read_before_it_waits_in_a_queue(job: Path) -> None:
    with pytest.raises(ConfigError, match="unrecognized arguments: --frm"):
        training(job, ["--frm", "a"], None, Machines())


def test_mounts_are_torchxs() -> None:
    mounts = ["type=volume", "src=data", "dst=/data", "readonly", "type=bind", "src=/here", "dst=/there"]
    first, second = on_ranks(["evaluate", "r"], name="a", machines=Machines(mounts=mounts)).roles[0].mounts
    assert (first.src, first.dst_path, first.read_only) == ("data", "/data", True)
    assert (second.src_path, second.dst_path, second.read_only) == ("/here", "/there", False)


def test_more_gpus_have_more_cores_and_memory() -> None:
    sizes = [RESOURCES[f"sparta_gpu_{count}"]() for count in (1, 2, 4, 8)]
    assert [size.gpu for size in sizes] == [1, 2, 4, 8]
    assert len({(size.cpu / size.gpu, size.memMB / size.gpu) for size in sizes}) == 1
