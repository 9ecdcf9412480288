"""The worker pool itself: worlds, failures, replacement."""

import os
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.pool import Pool, RankError


def world(rank: int, ranks: int, number: int) -> tuple[int, int, str, int]:
    x = torch.tensor([number + rank])
    dist.all_reduce(x)
    return dist.get_rank(), dist.get_world_size(), os.environ["LOCAL_WORLD_SIZE"], int(x)


def test_worlds_of_one_two_and_four(pool: Pool) -> None:
    for ranks, local_ranks in ((1, None), (2, None), (4, 2), (4, 4), (2, 1)):
        total = ranks * 10 + ranks * (ranks - 1) // 2
        found = pool.run(ranks, world, 10, local_ranks=local_ranks)
        assert found == [(rank, ranks, str(local_ranks or ranks), total) for rank in range(ranks)]


def broken(rank: int, ranks: int) -> None:
    raise ValueError(f"rank {rank} is broken")


def test_an_exception_comes_back_with_its_traceback(pool: Pool) -> None:
    with pytest.raises(RankError, match=r"(?s)in broken.*rank 1 is broken"):
        pool.run(2, broken)
    assert pool.run(1, world, 0)[0][0] == 0


def sleeps_or_dies(rank: int, ranks: int) -> None:
    if rank == 1:
        os._exit(7)
    time.sleep(600)


def test_a_dead_and_a_hanging_rank_are_named_and_replaced(tmp_path: Path) -> None:
    own = Pool(tmp_path, 2)
    try:
        with pytest.raises(RankError, match=r"(?s)in sleeps_or_dies.*died with exit code 7"):
            own.run(2, sleeps_or_dies)
        assert len(own.run(2, world, 1)) == 2
    finally:
        own.close()


def test_more_ranks_than_workers_are_refused(pool: Pool) -> None:
    with pytest.raises(ValueError, match="the pool has 4 workers, not 5"):
        pool.run(5, world, 1)


def tensors(rank: int, ranks: int) -> list[torch.Tensor]:
    return [torch.full((2,), float(k)) for k in range(30)]


def test_tensors_that_are_kept_keep_no_files_open(pool: Pool) -> None:
    pool.run(1, world, 0)
    before = len(os.listdir("/proc/self/fd"))
    (kept,) = pool.run(1, tensors)
    assert [float(x[0]) for x in kept] == list(range(30))
    assert len(os.listdir("/proc/self/fd")) == before
