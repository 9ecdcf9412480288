"""Scores of a trained model: metrics of a split, or probabilities of a raw file."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from sparta.models.batch import Batch
from sparta.models.errors import DataError
from sparta.models.schema import Schema
from sparta.service.data.loader import Loader
from sparta.service.metrics import Evaluation, corrected
from sparta.service.skips import Skips
from sparta.service.world import World
from sparta.sharding.shard import Sharded

# B = slots, T = tasks


@torch.no_grad()
def logits(sharded: Sharded, loader: Loader, world: World) -> Iterator[tuple[Batch, Tensor]]:
    """Every batch of the split (on the host) with its logits (B, T) on the host; no dropout, no statistics."""
    sharded.module.eval()
    try:
        for batch in loader.epoch(0):
            yield batch, sharded(batch.to(world.device)).cpu()
    finally:
        sharded.module.train()


def evaluate(
    sharded: Sharded,
    loader: Loader,
    world: World,
    schema: Schema,
    *,
    group: str | None = None,
    negatives_kept: float = 1.0,
    meanwhile: Callable[[], None] = lambda: None,
    skips: Skips | None = None,
    keep: Callable[[Batch, Tensor], None] | None = None,
) -> dict[str, dict[str, float | None]]:
    """Metrics of a split per label, over every row and rank; the same on all ranks.

    Args:
        group: categorical feature whose ids group the rows for GAUC.
        negatives_kept: share of the negatives that training kept and this split did not lose.
        meanwhile: called after every batch, on all ranks.
        skips: counts the rows that the loader leaves out; each evaluation has its own, as it sees them anew.
        keep: called with every batch and the logits (B, T) that are scored.

    Raises:
        DataError: the loader left out more rows than `skips` allows.
    """
    evaluation = Evaluation(schema.labels, group=group is not None)
    for batch, scores in logits(sharded, loader, world):
        scores = corrected(scores, negatives_kept)
        if keep:
            keep(batch, scores)
        evaluation.update(
            scores.numpy(),
            batch.labels.numpy(),
            batch.slots.weights.numpy(),
            None if group is None else _ids(batch, group).numpy(),
        )
        if skips:
            skips.add(batch.skipped)
        meanwhile()
    if skips:
        skips.compare()
    return evaluation.compute()


def probabilities(
    sharded: Sharded, loader: Loader, world: World, *, rows: int, negatives_kept: float = 1.0
) -> Tensor:
    """This rank's contiguous share of a split's rows, in order: (rows, T) probabilities."""
    parts = [corrected(scores, negatives_kept).sigmoid() for _, scores in logits(sharded, loader, world)]
    return torch.cat(parts)[:rows] if parts else torch.empty(0, 1)


def checked_split(schema: Schema, split: str, folder: str | Path) -> None:
    """Refuse a split the dataset does not have.

    Raises:
        DataError: naming those it has.
    """
    if split not in schema.splits:
        raise DataError(f"{folder}: has no {split!r} split, only {', '.join(schema.splits)}")


def _ids(batch: Batch, feature: str) -> Tensor:
    """(B,) ids of a single-valued feature; 0 in padding slots, whose bags are empty."""
    jagged = batch.sparse[feature]
    ids = torch.zeros(jagged.lengths().numel(), dtype=torch.int64)
    ids[jagged.lengths() == 1] = jagged.values().long()
    return ids
