"""The house: packages, faces, what loads torch, the size of files, job files, pinned versions."""

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from sparta.service.config import load_job
from sparta.service.data.spec import load_spec

ROOT = Path(__file__).parents[1]
CODE = ("launcher", "models", "optim", "service", "sharding")
SOURCES = sorted(path for folder in (*CODE, "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
JOBS = ROOT / "launcher" / "jobs"


def test_the_package_list_is_the_folders() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {
        "sparta." + ".".join(path.parent.relative_to(ROOT).parts)
        for folder in CODE
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert setup["package-dir"] == {"sparta": "."}
    assert set(setup["packages"]) == found
    assert not (ROOT / "__init__.py").exists()


def test_every_data_file_is_packaged() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packaged = {
        path
        for package, patterns in data.items()
        for pattern in patterns
        for path in ROOT.joinpath(*package.split(".")[1:]).glob(pattern)
    }
    assert packaged == {path for folder in CODE for path in (ROOT / folder).rglob("*.yaml")}


@pytest.mark.parametrize("package", ["sparta.models", "sparta.optim", "sparta.sharding"])
def test_a_face_is_a_sorted_list_that_resolves(package: str) -> None:
    face = importlib.import_module(package)
    # Constants, then classes, then functions, as ruff sorts them.
    kinds = [(not name.isupper(), not name[0].isupper(), name) for name in face.__all__]
    assert kinds == sorted(kinds)
    assert set(face.__all__) == set(face._HOMES)
    for name in face.__all__:
        assert getattr(face, name) is not None
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        _ = face.nothing_of_that_name


@pytest.mark.parametrize(
    "module",
    ["sparta.models.schema", "sparta.models.errors", "sparta.service.config", "sparta.launcher.cli"],
)
def test_what_the_launcher_needs_loads_nothing_heavy(module: str) -> None:
    heavy = {"torch", "torchrec", "torchx", "fbgemm_gpu", "pyarrow", "matplotlib"}
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_a_chapter(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") < 350
    assert not re.search(r"\bTO" + r"DO\b", text)
    assert not text or text.startswith('"""'), "the first lines say what this is"


@pytest.mark.parametrize("path", sorted(JOBS.rglob("*.yaml")), ids=lambda path: path.name)
def test_every_job_and_spec_file_is_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARTA_DATA", "/somewhere")
    if path.name.endswith(".prepare.yaml"):
        assert load_spec(path).labels
        assert path.with_name(path.name.replace(".prepare", "")).exists()
    else:
        assert load_job(path).name == path.stem


def test_the_names_of_settings_are_those_of_what_they_set() -> None:
    """Literals repeat names that live in modules with torch, which the configuration must not load."""
    from typing import get_args

    from sparta.optim.rows.group import BASES
    from sparta.service import build, config
    from sparta.sharding.engines import ENGINES, SHARDING_TYPES, TWO_PASS, Fbgemm

    assert set(get_args(config.DenseOptimizerName)) == set(build.DENSE_OPTIMIZERS)
    assert set(get_args(config.ShardingType)) == set(SHARDING_TYPES)
    assert set(get_args(config.TableOptimizerName)) == {*Fbgemm._TYPES, *BASES, *TWO_PASS}
    assert config.TWO_PASS == TWO_PASS
    base = config.TableOptimizerSettings.model_fields["base"].annotation
    assert set(get_args(base)) == set(BASES)
    assert set(get_args(config.TableOptimizerSettings.model_fields["engine"].annotation)) == set(ENGINES)


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_every_requirement_is_pinned(name: str) -> None:
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    wrong = [
        line
        for line in lines
        if line and not re.fullmatch(r"[A-Za-z0-9._-]+==([0-9]+!)?[0-9][A-Za-z0-9.]*", line)
    ]
    assert wrong == []


def test_yaml_of_jobs_has_no_key_twice() -> None:
    """PyYAML keeps the last of two equal keys without a word."""

    def check(node: yaml.Node) -> None:
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value]
            assert len(keys) == len(set(keys)), keys
            for _, value in node.value:
                check(value)

    folders = (JOBS, ROOT / "launcher/studies", ROOT / "service/data/specs")
    for path in [path for folder in folders for path in folder.rglob("*.yaml")]:
        node = yaml.compose(path.read_text())
        assert node is not None
        check(node)
