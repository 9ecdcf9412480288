"""A job file travels as text and arrives as it was."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparta.models.errors import ConfigError
from sparta.service.config import check_job, load_job
from sparta.service.job_text import read_text, write_text

LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
RAW = st.dictionaries(
    st.text(min_size=1),
    st.recursive(
        LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(min_size=1), inner), max_leaves=8
    ),
    max_size=4,
)
JOB = "{name: a, data: {path: '${NOWHERE}/x'}, model: {name: deepfm}}"


@given(raw=RAW)
def test_text_is_read_as_what_was_written(raw: dict[str, object]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        try:
            patch.setenv("TEXT", write_text(raw))
        except ValueError:  # no environment holds a null byte
            return
        assert read_text(Path("env:TEXT")) == raw


def test_a_job_of_the_environment_is_the_job_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "job.yaml").write_text(JOB)
    raw = read_text(tmp_path / "job.yaml", ["train.epochs=3", "data.batch_size=64"])
    monkeypatch.setenv("SPARTA_JOB", write_text(raw))
    monkeypatch.setenv("NOWHERE", "/there")
    job = load_job(Path("env:SPARTA_JOB"))
    assert job == load_job(tmp_path / "job.yaml", ["train.epochs=3", "data.batch_size=64"])
    assert (job.train.epochs, job.data.path) == (3, "/there/x")


def test_paths_of_another_machine_are_checked_but_not_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXT", JOB)
    monkeypatch.delenv("NOWHERE", raising=False)
    assert check_job(read_text(Path("env:TEXT")), "here").data.path == "${NOWHERE}/x"
    with pytest.raises(ConfigError, match="NOWHERE"):
        load_job(Path("env:TEXT"))
    with pytest.raises(ConfigError, match=r"^here: modell: unknown key"):
        check_job({**read_text(Path("env:TEXT")), "modell": 1}, "here")


def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEXT", raising=False)
    with pytest.raises(ConfigError, match="env:TEXT: the environment has no TEXT; set it"):
        load_job(Path("env:TEXT"))
