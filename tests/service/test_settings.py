"""What is said of a file of another kind; other mistakes are in test_bad_input.py, test_config.py and test_spec.py."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sparta.models.errors import ConfigError
from sparta.service.compare.study import load_study
from sparta.service.config import load_job
from sparta.service.data.spec import load_spec

ROOT = Path(__file__).parents[2]
KINDS: dict[Callable[[Path], object], tuple[str, str]] = {
    load_job: ("launcher/jobs/anime.yaml", "this is a job; give it to `sparta train`"),
    load_spec: ("launcher/jobs/anime.prepare.yaml", "this is a spec; give it to `sparta prepare`"),
    load_study: ("benchmarks/studies/zoo.yaml", "this is a study; give it to `sparta compare`"),
}


@pytest.mark.parametrize("read", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_a_file_of_another_kind_is_called_what_it_is(
    read: Callable[[Path], object], other: Callable[[Path], object]
) -> None:
    name, told = KINDS[other]
    if read is other:
        read(ROOT / name)
        return
    with pytest.raises(ConfigError) as error:
        read(ROOT / name)
    assert str(error.value) == f"{ROOT / name}: {told}"


@pytest.fixture(autouse=True)
def data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where shipped files look for their data."""
    monkeypatch.setenv("SPARTA_DATA", str(ROOT))
