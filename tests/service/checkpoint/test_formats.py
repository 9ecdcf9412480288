"""Checkpoints of former formats are still read."""

import json
from pathlib import Path

import pytest
import torch

from sparta.models.errors import DataError
from sparta.service.checkpoint import manifest as disk
from sparta.service.checkpoint.find import find
from sparta.service.checkpoint.store import Checkpoints
from sparta.service.world import World
from tests.service.checkpoint.tables import manifest, numbers, pieces, state, values


def test_a_checkpoint_of_weights_alone_can_still_be_scored(alone: World, tmp_path: Path) -> None:
    """Format 1: no manifest, nothing but weights."""
    checkpoints = Checkpoints(tmp_path, background=False)
    weights = {name: value for name, value in state(1.0).items() if name.startswith(("tables/", "dense/"))}
    checkpoints.save(weights, manifest(1))
    (tmp_path / "step-000000001" / disk.MANIFEST).unlink()
    (tmp_path / "step-000000001" / disk.COMMIT).write_text(json.dumps({"format": 1, "step": 1}))
    assert find(checkpoints.storage, "best") == find(checkpoints.storage, "last") == "step-000000001"
    mine = {name: value for name, value in state(0.0).items() if name in weights}
    checkpoints.load(mine, "step-000000001", weights_only=True)
    assert numbers(mine) == numbers(weights)
    with pytest.raises(DataError, match="format 1 holds weights only"):
        disk.read_manifest(checkpoints.storage, "step-000000001")


def test_what_was_saved_before_rows_could_owe_decay_owes_none(alone: World, tmp_path: Path) -> None:
    """Format 2: all rows had paid what they owed when it was taken."""
    checkpoints = Checkpoints(tmp_path, background=False)
    checkpoints.save(state(1.0), manifest(1))
    commit = tmp_path / "step-000000001" / disk.COMMIT
    commit.write_text(json.dumps({**json.loads(commit.read_text()), "format": 2}))
    assert disk.format_of(checkpoints.storage, "step-000000001") == 2
    owed = pieces(torch.full((7, 1), -1.0, dtype=torch.float64), "rows", 0, 1)
    mine = {**state(0.0), "optim/t/pending": owed}
    checkpoints.load(mine, find(checkpoints.storage, "last"))
    assert not values(mine.pop("optim/t/pending"))[0].any()
    assert numbers(mine) == numbers(state(1.0))
