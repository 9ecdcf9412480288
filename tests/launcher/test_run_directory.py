"""No run ever lands in another's directory."""

import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from sparta.launcher.run_directory import discard_unless_begun, given, logs_of, next_free, run_of
from sparta.models.errors import ConfigError
from sparta.service.alone import RunLock


def test_default_directories_are_numbered_from_two(tmp_path: Path) -> None:
    made = [next_free("demo", tmp_path / "runs") for _ in range(3)]
    assert [path.name for path in made] == ["demo", "demo-2", "demo-3"]


def test_a_gap_is_filled(tmp_path: Path) -> None:
    for _ in range(3):
        next_free("demo", tmp_path)
    (tmp_path / "demo-2").rmdir()
    assert next_free("demo", tmp_path).name == "demo-2"


def test_a_plain_file_counts_as_taken(tmp_path: Path) -> None:
    (tmp_path / "demo").touch()
    assert next_free("demo", tmp_path).name == "demo-2"


def test_trainings_started_together_get_different_directories(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: next_free("demo", tmp_path), range(16)))
    assert len(set(made)) == 16


def test_a_named_directory_may_exist_but_not_hold_a_run(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    assert given(path)
    assert not given(path)
    (path / "job.yaml").touch()
    with pytest.raises(ConfigError, match=re.escape(f"{path}: already holds a run; give another --run-dir")):
        given(path)
    assert not given(path, resume=True)


def test_a_directory_where_a_training_is_at_work_is_refused(tmp_path: Path) -> None:
    with closing(RunLock(tmp_path)) as lock:
        lock.take()
        with pytest.raises(ConfigError, match="is training there; wait for it, stop it"):
            given(tmp_path, resume=True)
    assert not given(tmp_path, resume=True)


def test_unwritable_places_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for attempt in (
        lambda: given(tmp_path / "file" / "run"),
        lambda: given(tmp_path / "file"),
        lambda: next_free("run", tmp_path / "file"),
    ):
        with pytest.raises(ConfigError, match=r"cannot be written \(.+\); give a writable --run-dir$"):
            attempt()
    for run in (tmp_path / "file", Path("/proc/self")):
        with pytest.raises(ConfigError, match=rf"^{run}: cannot be written \(.+\); the logs go there"):
            logs_of(run, "train")


def test_each_verb_has_its_own_logs(tmp_path: Path) -> None:
    assert logs_of(tmp_path, "train") != logs_of(tmp_path, "evaluate")
    assert run_of(logs_of(tmp_path, "train")) == tmp_path
    assert logs_of(tmp_path, "train") == logs_of(tmp_path, "train")
    assert list(logs_of(tmp_path, "train").iterdir()) == []


def test_only_a_run_that_never_began_is_discarded(tmp_path: Path) -> None:
    refused, begun = tmp_path / "refused", tmp_path / "begun"
    for path in (refused, begun):
        (logs_of(path, "train") / "rank-0.log").touch()
    (begun / "job.yaml").touch()
    discard_unless_begun(refused)
    discard_unless_begun(begun)
    assert not refused.exists()
    assert (begun / "logs" / "train" / "rank-0.log").exists()
