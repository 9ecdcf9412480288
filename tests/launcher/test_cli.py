"""The command line: every verb is started the right way, and starting is cheap."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparta.launcher.cli import VERBS, main

ROOT = Path(__file__).parents[2]


def drive(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `sparta WORDS` with the fake service."""
    command = [sys.executable, "-m", "tests.launcher.drive", *words]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=60)


def modules_after(code: str) -> set[str]:
    """What is imported after a piece of code has run in a fresh Python."""
    script = f"import sys\n{code}\nprint('\\n' + ' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_help_lists_every_verb_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for verb in VERBS:
        assert sum(line.split()[:1] == [verb] for line in lines) == 1
    assert main([]) == 0
    assert capsys.readouterr().out.splitlines() == lines


def test_help_loads_nothing_heavy() -> None:
    loaded = modules_after("from sparta.launcher.cli import main; main(['--help'])")
    assert not loaded & {"torch", "torchx", "numpy", "pydantic", "pyarrow"}


def test_starting_a_job_loads_no_torch() -> None:
    loaded = modules_after(
        "import sparta.launcher.local as local, sparta.service.config\nwith local._runner(): pass"
    )
    assert "torchx.runner" in loaded
    assert "torch" not in loaded


def test_an_unknown_verb_gets_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == "error: trian: no verb of sparta; did you mean train?\n"
    assert main(["xyz"]) == 2
    assert capsys.readouterr().err == "error: xyz: no verb of sparta; see `sparta --help`\n"


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("sparta ")


@pytest.mark.parametrize("verb", ["synth", "prepare", "check", "plan"])
def test_a_single_process_verb_becomes_the_service(verb: str, tmp_path: Path) -> None:
    words = ["a b", "--set", "$x=*", "--do", "-:arguments", "--do", "-:exit:7"]
    done = drive(verb, *words, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (7, "")
    assert done.stdout == f"{[verb, *words]}\n"


@pytest.mark.parametrize("words", [["train", "x.yaml", "--help"], ["predict", "-h"], ["evaluate"]])
def test_help_and_missing_targets_are_the_services(words: list[str], tmp_path: Path) -> None:
    asked = [*words, "--do", "-:arguments"]
    done = drive(*asked, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"{asked}\n")


def test_mistakes_are_one_line_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    held = tmp_path / "held"
    held.mkdir()
    job = "{name: fake, data: {path: x}, model: {name: deepfm}}"
    (held / "job.yaml").write_text(job)
    for words, complaint in [
        (["train", "nowhere.yaml"], "nowhere.yaml: "),
        (["train", "held/job.yaml", "--run-dir", "held"], "held: already holds a run"),
        (["train", "held/job.yaml", "--set", "modell=1"], "modell: unknown key"),
        (["train", "held/job.yaml", "--ranks", "0"], "--ranks 0: "),
        (["evaluate", "nowhere"], "nowhere: holds no job.yaml"),
        (["predict", "held/job.yaml", "a.parquet"], "held/job.yaml: holds no job.yaml"),
    ]:
        assert main(words) == 2
        said = capsys.readouterr().err
        assert complaint in said
        assert said.startswith("error: ")
        assert said.count("\n") == 1
    assert [path.name for path in tmp_path.rglob("*")] == ["held", "job.yaml"]
    assert (held / "job.yaml").read_text() == job
