"""The small data set, prepared once."""

from pathlib import Path

import pytest

from tests.service import toys


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared dataset; do not change it."""
    return toys.write_dataset(tmp_path_factory.mktemp("toy"))
