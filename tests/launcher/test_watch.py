"""`sparta watch` finds the runs that can be scraped, and ends without a trace."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sparta.launcher.cli import main
from sparta.launcher.watch import RULES, TARGETS, link, plain_rules
from tests.scraping import broken_rules, eventually, get, query
from tests.service.telemetry.fake_ranks import fake_run


@pytest.fixture
def targets(tmp_path: Path) -> Path:
    folder = tmp_path / "targets"
    folder.mkdir()
    return folder


def begun(run: Path, text: str = "[]") -> Path:
    run.mkdir(parents=True)
    (run / "job.yaml").touch()
    (run / TARGETS).write_text(text)
    return run


def test_links_are_those_of_the_runs_that_can_be_scraped_now(tmp_path: Path, targets: Path) -> None:
    runs = tmp_path / "runs"
    first = begun(runs / "clicks", "[1]")
    (runs / "not-yet").mkdir()
    link(runs, targets)
    assert [path.name for path in targets.iterdir()] == ["clicks.json"]
    assert (targets / "clicks.json").read_text() == "[1]"

    begun(runs / "clicks-2")
    link(runs, targets)
    assert {path.name for path in targets.iterdir()} == {"clicks.json", "clicks-2.json"}

    (first / TARGETS).unlink()
    link(runs, targets)
    assert [path.name for path in targets.iterdir()] == ["clicks-2.json"]


def test_one_run_can_be_watched_alone(tmp_path: Path, targets: Path) -> None:
    begun(tmp_path / "runs" / "other")
    link(begun(tmp_path / "runs" / "clicks"), targets)
    assert [path.name for path in targets.iterdir()] == ["clicks.json"]


def test_a_run_that_starts_again_is_read_anew(tmp_path: Path, targets: Path) -> None:
    run = begun(tmp_path / "runs" / "clicks", "[1]")
    link(run.parent, targets)
    (run / "new").write_text("[2]")
    (run / "new").rename(run / TARGETS)
    link(run.parent, targets)
    assert (targets / "clicks.json").read_text() == "[2]"


def test_the_rules_are_the_groups_of_the_object(tmp_path: Path) -> None:
    plain = plain_rules(RULES, tmp_path)
    assert yaml.safe_load(plain.read_text()) == {
        "groups": yaml.safe_load(RULES.read_text())["spec"]["groups"]
    }


def test_a_folder_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", "no/such"]) == 2
    assert capsys.readouterr().err.startswith("error: no/such: no such folder; ")


@pytest.mark.prometheus
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_it_scrapes_a_run_until_it_is_told_to_end(end: signal.Signals, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    runs = tmp_path / "runs"
    runs.mkdir()
    command = [sys.executable, "-m", "sparta.launcher", "watch", str(runs)]
    env = {**os.environ, "TMPDIR": str(scratch)}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as watching:
        try:
            assert watching.stdout
            found = re.search(r"http://127\.0\.0\.1:\d+", watching.stdout.readline())
            assert found
            url = found[0]
            with fake_run(runs / "clicks-2", name="clicks", ranks=2) as ranks:  # begun while we watch
                for rank in ranks:
                    rank.advance()
                eventually(lambda: list(query(url, "sum(sparta_steps_total)").values()) == [2.0])
                eventually(lambda: broken_rules(url) == [])
                assert {target["labels"]["name"] for target in get(url, "targets")["activeTargets"]} == {
                    "clicks"
                }
        finally:
            watching.send_signal(end)
        assert watching.wait(timeout=60) == 0
    assert list(scratch.iterdir()) == []
    with pytest.raises(OSError):
        query(url, "up")
