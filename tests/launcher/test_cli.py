"""The command line: every verb is started the right way, and starting is cheap."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparta.launcher.cli import VERBS, main
from sparta.launcher.local import LocalJob, Outcome
from sparta.launcher.verdict import Verdict

ROOT = Path(__file__).parents[2]
# The fake service is found from anywhere, `sparta` where this Python finds it.
PYTHONPATH = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

FAKE = "{name: fake, data: {path: x}, model: {name: deepfm}}"


def drive(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `sparta WORDS` with the fake service."""
    command = [sys.executable, "-m", "tests.launcher.drive", *words]
    env = {**os.environ, "PYTHONPATH": PYTHONPATH}
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


@pytest.mark.parametrize("verb", ["synth", "prepare", "check", "plan", "checkpoint"])
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


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[LocalJob]:
    """The jobs that are started from a folder with a job file; each is refused at once."""
    jobs: list[LocalJob] = []

    def run(job: LocalJob) -> Outcome:
        jobs.append(job)
        return Outcome(3, Verdict("no column x", 3, True, job.logs))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sparta.launcher.local.run", run)
    (tmp_path / "job.yaml").write_text(FAKE)
    return jobs


def test_resume_goes_on_in_the_same_directory_and_never_removes_one(
    started: list[LocalJob], tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "fake"
    assert main(["train", "job.yaml", "--resume"]) == 3
    assert not run.exists()
    run.mkdir(parents=True)
    assert main(["train", "job.yaml", "--resume"]) == 3
    assert run.exists()
    (run / "job.yaml").write_text(FAKE)
    assert main(["train", "job.yaml", "--resume"]) == 3
    assert main(["train", "job.yaml", "--resume", "--run-dir", "runs/fake"]) == 3
    assert {job.logs for job in started} == {Path("runs/fake/logs/train")}
    assert {job.arguments for job in started} == {
        ("train", "job.yaml", "--resume", "--run-dir", "runs/fake"),
    }
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["fake"]


def test_only_training_is_restarted(started: list[LocalJob], tmp_path: Path) -> None:
    main(["train", "job.yaml", "--set", "tolerate.restarts=7"])
    main(["evaluate", "."])
    assert [job.restarts for job in started] == [7, 0]


def test_mistakes_are_one_line_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    held = tmp_path / "held"
    held.mkdir()
    (held / "job.yaml").write_text(FAKE)
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
    assert (held / "job.yaml").read_text() == FAKE
