"""Whether the ids of a bag are within their tables, asked before anything indexes with them.

Our kernels and FBGEMM's would read and write where they say. On a GPU FBGEMM asks, and the device's assertion fails;
its loop for CPUs goes from bag to bag on one core and takes fifteen times as long as ours, so there ours asks.
"""

import numpy as np
import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode

from sparta.optim.rows.group import Bags
from sparta.optim.rows.loops import Index, compiled


class Bounds:
    """What the ids of one bag must be within.

    Args:
        rows: of each feature's table.
    """

    def __init__(self, rows: list[int], device: torch.device) -> None:
        self._rows = torch.tensor(rows, dtype=torch.int64, device=device)
        self._warnings = torch.zeros(1, dtype=torch.int64, device=device)

    def check(self, bags: Bags) -> None:
        """Refuse ids and offsets that lead elsewhere.

        Raises:
            RuntimeError: one does; on a GPU a device-side assertion, when the host comes to know.
        """
        if self._rows.is_cuda:
            # To FBGEMM -1 is a row that was pruned away, which is then read.
            torch._assert_async((bags.ids >= 0).all(), "an id below 0 is out of bounds")
            torch.ops.fbgemm.bounds_check_indices(
                self._rows, bags.ids, bags.offsets, BoundsCheckMode.FATAL.value, self._warnings, bags.weights
            )
            return
        ids, offsets, rows = (x.numpy() for x in (bags.ids, bags.offsets, self._rows))
        samples, more = divmod(len(offsets) - 1, max(1, len(rows)))
        if more or not _rise(offsets.view(np.uint64), np.uint64(len(ids))):
            raise RuntimeError(
                f"{len(offsets)} offsets of {len(rows)} features do not rise from 0 to the {len(ids)} ids; give the "
                "KeyedJaggedTensor lengths that are not negative and add up to its values, as many for each feature"
            )
        if bags.weights is not None and len(bags.weights) != len(ids):
            raise RuntimeError(f"{len(bags.weights)} weights of {len(ids)} ids; give every id one")
        if not samples:
            return
        begins = offsets[::samples]
        feature = int(_first_outside(*(x.view(np.uint64) for x in (ids, begins, rows))))
        if feature < len(rows):
            mine, limit = ids[begins[feature] : begins[feature + 1]], rows[feature]
            bad = mine[(mine < 0) | (mine >= limit)][0]
            raise RuntimeError(
                f"id {bad} of feature {feature} of {len(rows)} is out of bounds: its table has the rows 0 to "
                f"{limit - 1}; give ids that it does not have a row of their own"
            )


@compiled
def _rise(offsets: Index, last: np.uint64) -> bool:
    wrong = offsets[0] != 0 or offsets[-1] != last
    for i in range(len(offsets) - 1):
        wrong |= offsets[i] > offsets[i + 1]
    return not wrong


@compiled
def _first_outside(ids: Index, begins: Index, rows: Index) -> int:
    """The first feature that has an id outside its table; their number if none has. Below 0 is far beyond any table."""
    for feature in range(len(rows)):
        wrong = False
        for i in range(begins[feature], begins[feature + 1]):
            wrong |= ids[i] >= rows[feature]
        if wrong:
            return feature
    return len(rows)
