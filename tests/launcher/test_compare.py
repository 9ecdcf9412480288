"""`sparta compare --submit`: cells as jobs, so many at a time, found again, and what they came to."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from sparta.launcher import compare
from sparta.launcher.cli import main
from sparta.models.errors import SpartaError
from sparta.service.compare.cells import Cell, Folder
from sparta.service.compare.run import finals, go, grids
from tests.launcher.test_cli import drive, modules_after
from tests.service.compare import toys


class Cluster:
    """Stands in for a scheduler: a job ends when it has been looked at twice, as `strength` says."""

    def __init__(self, folder: Folder, strength: toys.Strength = toys.better) -> None:
        self.folder, self.strength = folder, strength
        self.jobs: dict[str, tuple[Cell, int]] = {}
        self.sent: list[list[str]] = []
        self.most = 0
        self.broken: set[str] = set()
        part = toys.whole(folder)
        self.cells = lambda: {
            str(folder.run(cell)): cell for cell in [*grids(folder, part), *finals(folder, part)]
        }

    def hand_over(self, argv: Sequence[str], *, service: str) -> str:
        run = argv[argv.index("--run-dir") + 1]
        handle = f"slurm://sparta/{len(self.sent)}"
        self.jobs[handle] = (self.cells()[run], 0)
        self.sent.append(list(argv))
        return handle

    def state(self, handle: str) -> str:
        cell, looks = self.jobs[handle]
        running = sum(looks < 2 for _, looks in self.jobs.values())
        self.most = max(self.most, running)
        self.jobs[handle] = (cell, looks + 1)
        if looks < 1:
            return "RUNNING"
        if cell.name in self.broken:
            return "FAILED"
        toys.finish(self.folder, cell, self.strength(cell))
        return "SUCCEEDED"


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster(toys.folder(tmp_path))
    monkeypatch.setattr(compare, "hand_over", made.hand_over)
    monkeypatch.setattr(compare, "_state", made.state)
    monkeypatch.setattr(compare, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(compare, "LAG_SECONDS", 0.0)
    return made


def run(cluster: Cluster, number: int = 3) -> None:
    runner = compare.submitted(cluster.folder, "slurm", ["--cfg", "partition=x"], number, "service")
    go(cluster.folder, toys.whole(cluster.folder), runner, lambda line: None)


def test_every_cell_is_a_job_of_its_own_and_no_more_than_asked_for_run_at_a_time(cluster: Cluster) -> None:
    run(cluster)
    assert len(cluster.sent) == 12
    assert cluster.most == 3
    first = cluster.sent[0]
    assert first[:3] == [str(Path(cluster.folder.study.data["toy"].job)), "-s", "slurm"]
    assert first[-2:] == ["--cfg", "partition=x"]
    assert "train.test=unread" in first
    assert not list(cluster.folder.path.glob("cells/*.handle"))
    assert len(list(cluster.folder.path.glob("cells/*.json"))) == 12


def test_jobs_of_a_study_that_was_killed_are_found_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(handle: str) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(compare, "_state", killed)
        with pytest.raises(KeyboardInterrupt):
            run(cluster)
    assert len(cluster.sent) == 3
    run(cluster)
    assert len(cluster.sent) == 12


def test_a_job_that_diverged_is_a_result_and_one_that_failed_is_not(cluster: Cluster) -> None:
    cluster.strength = lambda cell: None if cell.optimizer == "adam" else 1.0
    name = grids(cluster.folder, toys.whole(cluster.folder))[-1].name
    cluster.broken = {name}
    with pytest.raises(
        SpartaError, match=f"{name}: job slurm://sparta/3 ended without a result .* run it again"
    ):
        run(cluster)
    assert len(list(cluster.folder.path.glob("cells/*.json"))) == 3
    cluster.broken = set()
    run(cluster)
    assert len(cluster.sent) == 4 + 1 + 4


def test_a_job_that_nobody_knows_any_more_is_over(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(compare, "_state", lambda handle: compare.GONE)
        with pytest.raises(SpartaError, match="job slurm://sparta/0 ended without a result"):
            run(cluster)
    assert len(cluster.sent) == 4
    run(cluster)
    assert len(cluster.sent) == 4 + 12


def test_a_local_job_without_a_record_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert compare._state("local_cwd://sparta/none") == compare.GONE


@pytest.mark.parametrize("state", [None, "RUNNING"])
def test_a_cluster_s_job_is_what_the_scheduler_says_or_gone(
    state: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = state and SimpleNamespace(state=SimpleNamespace(name=state))
    monkeypatch.setattr("sparta.launcher.cluster.known", lambda handle: found)
    assert compare._state("kueue://sparta/ns:job") == (state or compare.GONE)


def test_without_submit_it_becomes_the_service(tmp_path: Path) -> None:
    words = ["study.yaml", "--slots", "2", "--do", "-:arguments", "--do", "-:show:THP_MEM_ALLOC_ENABLE"]
    done = drive("compare", *words, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{['compare', *words]}\nTHP_MEM_ALLOC_ENABLE=1\n"


def test_a_dry_run_lists_the_commands_of_the_scheduler(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = str(toys.write(tmp_path))
    words = [
        "compare",
        study,
        "--work",
        str(tmp_path / "w"),
        "--dry-run",
        "--submit",
        "slurm",
        "--",
        "--nodes",
        "2",
    ]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith(f"  sparta submit -s slurm --nodes 2 {tmp_path}/job.yaml --set ")
    assert not (tmp_path / "w").exists()


def test_an_unknown_scheduler_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(toys.write(tmp_path)), "--submit", "pbs"]) == 2
    assert capsys.readouterr().err == "error: --submit pbs: none of local_cwd, kubernetes, slurm, kueue\n"


def test_submitting_a_study_loads_nothing_heavy() -> None:
    loaded = modules_after("import sparta.launcher.compare")
    assert not loaded & {"torch", "numpy", "pyarrow", "matplotlib", "mpmath"}
