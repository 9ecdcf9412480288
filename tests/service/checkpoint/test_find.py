"""Whose a folder of checkpoints is; which one is meant is tested in test_store."""

from pathlib import Path

import pytest

from sparta.models.errors import ConfigError
from sparta.service.checkpoint import manifest as disk
from sparta.service.checkpoint.find import check_free, own
from sparta.service.checkpoint.storage import Storage


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    return folders


def test_a_folder_has_one_owner(runs: list[Path], tmp_path: Path) -> None:
    storage = Storage(tmp_path / "checkpoints")
    check_free(storage)
    for _ in range(2):  # from the second time on it resumes
        own(storage, runs[0])
    with pytest.raises(
        ConfigError, match=r"holds checkpoints of another run; give this one a checkpoint.path"
    ):
        check_free(storage)
    for _ in range(2):
        with pytest.raises(ConfigError, match=f"holds checkpoints of another run than {runs[1]}"):
            own(storage, runs[1])
    own(Storage(tmp_path / "others"), runs[1])
    with pytest.raises(ConfigError, match="another run"):
        own(storage, runs[1])


def test_checkpoints_without_an_owner_are_another_runs_for_a_new_one_only(
    runs: list[Path], tmp_path: Path
) -> None:
    storage = Storage(tmp_path / "checkpoints")
    storage.make(disk.name_of(7))
    with pytest.raises(ConfigError, match="another run"):
        check_free(storage)
    own(storage, runs[0])
    with pytest.raises(ConfigError, match="another run"):
        own(storage, runs[1])


def test_a_start_that_was_killed_while_it_took_the_folder_goes_on(runs: list[Path], tmp_path: Path) -> None:
    storage = Storage(tmp_path / "checkpoints")
    (runs[0] / disk.OWNER).write_text("me\n")
    own(storage, runs[0])
    own(storage, runs[0])
