"""TorchX finds the components, understands them, and renders them for every scheduler."""

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from torchx.runner import get_runner
from torchx.specs import Resource
from torchx.specs.builders import materialize_appdef
from torchx.specs.finder import ModuleComponentsFinder

from sparta.launcher import components

ROOT = Path(__file__).parents[2]
GROUPS: dict[str, dict[str, str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
    "entry-points"
]
JOB = "{name: clicks, data: {path: x}, model: {name: deepfm}}"


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    return path


def registered(group: str) -> dict[str, Any]:
    """What the installed package offers, loaded as an entry point is."""
    found = {}
    for name, value in GROUPS[group].items():
        module, _, attribute = value.partition(":")
        found[name] = importlib.import_module(module)
        if attribute:
            found[name] = getattr(found[name], attribute)
    return found


def test_every_component_is_found_and_passes_torchxs_linter() -> None:
    found = [
        component
        for name, module in registered("torchx.components").items()
        for component in ModuleComponentsFinder(module, name).find()
    ]
    assert {one.name for one in found} >= {"sparta.train", "sparta.evaluate", "sparta.prepare", "dist.ddp"}
    ours = [one for one in found if one.name.startswith("sparta.")]
    assert len(ours) == 3
    assert [one.validation_errors for one in ours] == [[]] * 3


def test_every_argument_is_documented() -> None:
    from docstring_parser import parse

    for function in (components.train, components.evaluate, components.prepare):
        told = {one.arg_name for one in parse(function.__doc__ or "").params}
        assert told == set(function.__annotations__) - {"return"}


def test_named_resources_are_resources() -> None:
    assert {"sparta_gpu_1", "sparta_gpu_2", "sparta_gpu_4", "sparta_gpu_8", "sparta_cpu"} == set(
        GROUPS["torchx.named_resources"]
    )
    assert all(isinstance(make(), Resource) for make in registered("torchx.named_resources").values())


COMMON = [
    "--mounts",
    "type=volume,src=d,dst=/r",
    "--env",
    "A=1,B=2",
    "-h",
    "sparta_cpu",
    "--max_retries",
    "3",
]
WORDS = {
    "train": [
        "--job",
        "job.yaml",
        "-j",
        "1:2x2",
        "--run_dir",
        "/r/a",
        *COMMON,
        "--",
        "--set",
        "train.seed=77",
    ],
    "evaluate": ["--run_dir", "/r", "-j", "1:2x2", *COMMON, "--", "--checkpoint", "last"],
    "prepare": ["--spec", "s", "--out", "o", *COMMON, "--", "--overwrite"],
}


@pytest.mark.filterwarnings("ignore:(?s).*Volcano")  # TorchX's own word on retries
@pytest.mark.parametrize("scheduler, cfg", [("local_cwd", {}), ("slurm", {}), ("kubernetes", {"queue": "q"})])
@pytest.mark.parametrize("verb", list(WORDS))
def test_every_scheduler_renders_every_component(
    job: Path, verb: str, scheduler: str, cfg: dict[str, Any]
) -> None:
    image = ["--image", "a/b"] if scheduler == "kubernetes" else []
    app = materialize_appdef(getattr(components, verb), [*image, *WORDS[verb]])
    with get_runner() as runner:
        text = str(runner.dryrun(app, scheduler, cfg))
    last = {"train": "seed: 77", "evaluate": "--checkpoint", "prepare": "--overwrite"}[verb]
    expected = ["sparta.service", verb, last, *({"train": ["env:SPARTA_JOB"]}.get(verb, []))]
    if verb != "prepare":
        expected.append("1:2")
    if scheduler == "kubernetes":
        expected += ["claimName: d", "maxRetry: 3", "image: a/b"]
        expected += [] if verb == "prepare" else ["env:VC_RANKS_0_HOSTS:29500"]
    assert [word for word in expected if word not in text] == []


def test_rendering_loads_no_torch(job: Path) -> None:
    code = (
        "import sys\nfrom torchx.runner import get_runner\nfrom torchx.specs.builders import materialize_appdef\n"
        "from sparta.launcher.components import train\n"
        f"app = materialize_appdef(train, ['--job', {str(job)!r}, '--image', 'i', "
        "'--mounts', 'type=volume,src=a,dst=/runs'])\n"
        "with get_runner() as runner: runner.dryrun(app, 'kubernetes', {'queue': 'q'})\n"
        "print(sorted({'torch', 'numpy', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_what_is_wrong_ends_in_one_line_where_torchx_calls(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere.yaml")
    done = subprocess.run(
        [sys.executable, "-m", "torchx.cli.main", "run", "-s", "local_cwd", "sparta.train", "--job", nowhere],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "nowhere.yaml: No such file" in done.stderr
    assert "Traceback" not in done.stderr
