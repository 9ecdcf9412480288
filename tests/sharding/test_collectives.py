"""Collectives: the formula on many ranks, the identity on one."""

import torch

from sparta.sharding.collectives import barrier, from_first, gather, rank, ranks, total
from tests.pool import Pool


def everything(mine: int, many: int) -> tuple[int, int, list[float], str, list[int]]:
    barrier()
    x = torch.tensor([float(mine), -float(mine)])
    return (
        rank(),
        ranks(),
        total(x.clone()).tolist(),
        from_first(f"of {mine}"),
        gather(mine),
    )


def test_collectives_on_every_world(pool: Pool) -> None:
    for many in (1, 2, 4):
        whole = many * (many - 1) / 2
        for mine, found in enumerate(pool.run(many, everything)):
            assert found == (mine, many, [whole, -whole], "of 0", list(range(many)))


def test_without_a_process_group_they_are_the_identity() -> None:
    x = torch.tensor([1.0, 2.0])
    assert total(x) is x
    assert (rank(), ranks(), from_first("a"), gather("a")) == (0, 1, "a", ["a"])
    barrier()
