"""Tables split by columns: each shard sees a part of every row's gradient, and some numbers are of the whole row.

All ranks that hold shards of such a table get the same ids in the same order, so touched row u of one is touched
row u of the other, and the sum over the shards of the rows' squares is a sum of vectors.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from sparta.sharding.collectives import rank, ranks, total
from sparta.sharding.rows.call import Call
from sparta.sharding.rows.learner import Pass


class SplitTables:
    """The tables that are split by columns; made by all ranks together, with the same holders.

    Args:
        holders: the ranks that hold shards of each table, ascending.
    """

    def __init__(self, holders: Mapping[str, tuple[int, ...]]) -> None:
        self._tables: dict[tuple[int, ...], list[str]] = {}
        for name in sorted(holders):
            self._tables.setdefault(holders[name], []).append(name)
        whole = tuple(range(ranks()))
        # Collective: every rank makes every group, also those it is not in, in one order.
        self._groups = {
            members: dist.new_group(list(members)) if 1 < len(members) < len(whole) else None
            for members in sorted(self._tables)
        }

    def complete(self, passes: Sequence[tuple[Call, Pass]], names: Sequence[str]) -> None:
        """Make `squares` of these tables those of whole rows; collective over the ranks that hold them."""
        for members in sorted(self._tables):
            wanted = [name for name in self._tables[members] if name in names]
            if not wanted or rank() not in members:
                continue
            shards = [_shards(passes, name) for name in wanted]
            joined = torch.cat([torch.stack(of_table).sum(0) for of_table in shards])
            if len(members) > 1:
                group = self._groups[members]
                if group is None:
                    total(joined)
                else:
                    dist.all_reduce(joined, group=group)
            for of_table, whole in zip(shards, torch.split(joined, [len(s[0]) for s in shards]), strict=True):
                for part in of_table:
                    part.copy_(whole)


def _shards(passes: Sequence[tuple[Call, Pass]], name: str) -> list[Tensor]:
    """This rank's squares of a table, a view for each shard."""
    return [
        one.sum.squares[int(one.touched.bounds[table]) : int(one.touched.bounds[table + 1])]
        for call, one in passes
        for table, held in enumerate(call.learner.names)
        if held == name
    ]
