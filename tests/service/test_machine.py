"""A result says on what processor and with what versions it was made."""

from importlib.metadata import version
from pathlib import Path

import pytest

from sparta.service import machine


@pytest.mark.parametrize(
    ("told", "name"),
    [
        (
            "processor\t: 0\nmodel name\t: A CPU @ 2.0GHz\nflags\t: a b\n\nmodel name\t: A CPU",
            "A CPU @ 2.0GHz",
        ),
        ("processor\t: 0\nCPU architecture: 8\n", "aarch64"),
        ("model name\t: \n", "aarch64"),
        (None, "aarch64"),
    ],
)
def test_the_processor_has_a_name(
    told: str | None, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine.platform, "machine", lambda: "aarch64")
    if told is not None:
        (tmp_path / "cpuinfo").write_text(told)
    assert machine.processor() == name


def test_versions_are_those_of_what_is_installed() -> None:
    assert machine.versions(("torch", "nobody-has-this")) == {"torch": version("torch")}
    assert machine.versions().keys() >= {"sparta", "torch", "torchrec", "numpy", "pyarrow"}
