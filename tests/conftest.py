"""Fixtures every test may use."""

import os
import shutil
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.pool import Pool

# How long an example takes says more of the machine than of the law.
settings.register_profile("sparta", deadline=None)
settings.load_profile("sparta")


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Worker processes that act as 1, 2 or 4 ranks: `pool.run(2, fn, *args)`."""
    pool = Pool(tmp_path_factory.mktemp("pool"))
    yield pool
    pool.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Prometheus is no Python package: without it its tests are skipped, but in CI they fail."""
    if os.environ.get("CI") or (shutil.which("prometheus") and shutil.which("promtool")):
        return
    reason = "no prometheus or promtool on PATH (Debian: apt-get install prometheus)"
    for item in items:
        if item.get_closest_marker("prometheus"):
            item.add_marker(pytest.mark.skip(reason=reason))
