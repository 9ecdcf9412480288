"""A process group of this process alone."""

from collections.abc import Iterator

import pytest

from sparta.service.world import World, world


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """This process as the only rank."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with world("cpu") as here:
        yield here
