"""Fixtures every test may use."""

from collections.abc import Iterator

import pytest

from tests.pool import Pool


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Worker processes that act as 1, 2 or 4 ranks: `pool.run(2, fn, *args)`."""
    pool = Pool(tmp_path_factory.mktemp("pool"))
    yield pool
    pool.close()
