"""Logits of the test split, kept beside a run's result: a paired comparison of runs draws its rows from them.

A file a rank, which holds the rows of its own contiguous share in order, so that all of them in the order of the ranks
are the split in the order of its files, but for rows without weight.
"""

# N = rows, T = tasks

import shutil
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from sparta.models.batch import Batch
from sparta.models.errors import DataError
from sparta.service.world import World

Floats = NDArray[np.float32]


class Kept:
    """What one rank has scored so far."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def add(self, batch: Batch, logits: Tensor) -> None:
        """The rows of a batch: its logits, labels (both T) and weights, side by side."""
        weights = batch.slots.weights
        rows = torch.cat([logits.float(), batch.labels.float(), weights[:, None].float()], dim=1)
        self._parts.append(rows[weights > 0])

    def save(self, folder: Path, world: World) -> None:
        """Write what was added, if anything was, and wait until all ranks have. Collective."""

        def clear() -> bool:
            if self._parts:
                shutil.rmtree(folder, ignore_errors=True)  # of a time with more ranks
                folder.mkdir()
            return bool(self._parts)

        if not world.once(clear):
            return
        np.save(folder / f"rank-{world.rank:05}.npy", torch.cat(self._parts).numpy())
        if world.ranks > 1:
            dist.barrier()


def load_kept(folder: Path) -> tuple[Floats, Floats, Floats]:
    """Logits (N, T), labels (N, T) and weights (N) of the rows that have weight.

    Raises:
        DataError: none were kept.
    """
    files = sorted(folder.glob("rank-*.npy"))
    if not files:
        raise DataError(f"{folder}: holds no scores; a run keeps them with --set train.test=kept")
    rows = np.concatenate([np.load(file) for file in files])
    tasks = rows.shape[1] // 2
    return rows[:, :tasks], rows[:, tasks : 2 * tasks], rows[:, -1]
