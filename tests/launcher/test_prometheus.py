"""A real Prometheus starts, answers, and leaves nothing behind."""

import os
import socket
from pathlib import Path
from urllib.request import urlopen

import pytest

from sparta.launcher.prometheus import prometheus
from sparta.models.errors import ConfigError


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders go."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.prometheus
def test_it_answers_on_loopback_and_then_is_gone(scratch: Path) -> None:
    with prometheus({}) as server:
        assert server.url.startswith("http://127.0.0.1:")
        with urlopen(f"{server.url}/-/healthy", timeout=10) as answer:
            assert answer.status == 200
        assert list(scratch.iterdir()) != []
    assert not alive(server.process.pid)
    assert list(scratch.iterdir()) == []


@pytest.mark.prometheus
def test_it_is_gone_when_the_block_fails(scratch: Path) -> None:
    with pytest.raises(KeyboardInterrupt), prometheus({}) as server:
        raise KeyboardInterrupt
    assert not alive(server.process.pid)
    assert list(scratch.iterdir()) == []


@pytest.mark.prometheus
def test_a_configuration_that_is_none_is_told(scratch: Path) -> None:
    with pytest.raises(ConfigError, match="scrapes_configs"), prometheus({"scrapes_configs": []}):
        pass
    assert list(scratch.iterdir()) == []


@pytest.mark.prometheus
def test_a_port_that_is_taken_is_told(scratch: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(ConfigError, match=f"--port {port}: Address already in use; give another"),
            prometheus({}, port=port),
        ):
            pass


def test_without_one_the_way_to_get_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    way = r"not on PATH; install it \(Debian: .apt-get install prometheus"
    with pytest.raises(ConfigError, match=way), prometheus({}):
        pass
