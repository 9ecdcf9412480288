"""What is said where torch sees GPUs and FBGEMM does not."""

import pytest
import torch

from sparta.models.errors import ConfigError
from sparta.service.world import device_for
from sparta.sharding.device import unused, usable_gpus

without = pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs")


@without
def test_nothing_where_there_are_none() -> None:
    assert (usable_gpus(), unused()) == (0, "")
    assert device_for("auto", 1) == "cpu"
    with pytest.raises(ConfigError, match=r"1 ranks find 0 GPUs .*; use fewer ranks, cpu or auto$"):
        device_for("cuda", 1)


@without
def test_fbgemms_build_for_cpus_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert usable_gpus() == 0
    assert unused().startswith("torch sees 2, but FBGEMM's build for CPUs is installed; put")
    assert device_for("auto", 1) == "cpu"
    with pytest.raises(ConfigError, match=r"torch sees 2, but FBGEMM.*VARIANT=cuda"):
        device_for("cuda", 1)
