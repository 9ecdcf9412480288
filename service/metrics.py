"""Metrics of one split, per task, over all rows of all ranks.

LogLoss, normalised entropy (He et al., ADKDD 2014: LogLoss over the entropy of the base rate) and
calibration (mean prediction over mean label) are sums, so ranks add them up. AUC and GAUC need the rows
side by side: they travel to rank 0 and the result comes back. Beyond `EXACT_ROWS` rows AUC comes from
summed histograms, with a bound on its error under `auc_error`; GAUC stays exact, some groups at a time.

A metric that the rows do not define (AUC of one class, calibration without a positive) is None. Rows of
weight 0 are covered but count in no metric.
"""

# B = slots of a batch, N = rows of this rank, T = tasks, K = bins

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from sparta.models.errors import ConfigError, DataError, DivergedError
from sparta.service import auc

Doubles = NDArray[np.float64]
Records = NDArray[np.void]

Metrics = dict[str, float | None]

EXACT_ROWS = 50_000_000
"""Rows of all ranks up to which AUC is exact; the first rank then holds and sorts them."""

CHUNK = 1 << 18
"""Rows held in one array, and sent at once."""


def corrected(logits: Tensor, kept: float) -> Tensor:
    """Logits of the real base rate, from a model trained on all positives and this share of the negatives.

    Sampling multiplied the odds by 1 / kept (He et al., 2014, section 6.3: q = p / (p + (1 - p) / kept)).
    """
    if not 0 < kept <= 1:
        raise ConfigError(f"share of negatives kept is {kept}; it must be above 0 and at most 1")
    return logits + math.log(kept)


class Evaluation:
    """Takes this rank's rows batch by batch; `compute` is a collective.

    Args:
        group: whether rows come with group ids, for GAUC; rows that share an id, but not 0, form a group.
        ranks: who takes part; the default group, or this process alone where there is none.
        alone: this process alone takes part in any case.
    """

    def __init__(
        self,
        labels: Sequence[str],
        *,
        group: bool = False,
        ranks: dist.ProcessGroup | None = None,
        alone: bool = False,
        exact_rows: int = EXACT_ROWS,
    ) -> None:
        self.labels = tuple(labels)
        self.group = group
        group_of_all = ranks or (dist.group.WORLD if dist.is_initialized() else None)
        # A large tensor that gloo sends, to oneself even, leaves its thread with OpenMP threads of its own. These are
        # more than there are cores then, so libgomp lets all of them sleep where they waited: small steps take half as
        # long again for the rest of a run.
        alone = alone or group_of_all is None or dist.get_world_size(group_of_all) == 1
        self.ranks = None if alone else group_of_all
        self.exact_rows = exact_rows
        self.covered = 0
        """Real rows of this rank so far, those of weight 0 too if they are told from padding."""
        self._chunks: list[_Rows] = []
        self._pending: list[_Rows] = []  # less than a chunk

    def update(
        self,
        logits_BT: NDArray[np.float32],
        labels_BT: NDArray[np.float32],
        weights_B: NDArray[np.float32],
        groups_B: NDArray[np.int64] | None = None,
        *,
        real_B: NDArray[np.bool_] | None = None,
    ) -> None:
        """Keep a copy of the real rows of a batch.

        Args:
            real_B: False in padding slots. Without it the rows of weight 0 pass for padding.

        Raises:
            ValueError: group ids given without `group=True`, or missing with it.
        """
        if (groups_B is not None) != self.group:
            raise ValueError(
                f"group is {self.group}, but group ids are {'missing' if self.group else 'given'}"
            )
        keep = weights_B > 0
        if real_B is not None:
            keep &= real_B
        self.covered += int(np.count_nonzero(keep if real_B is None else real_B))
        rows = _Rows(
            logits_BT[keep].astype(np.float32, copy=False),
            labels_BT[keep] > 0.5,
            weights_B[keep].astype(np.float32, copy=False),
            None if groups_B is None else groups_B[keep].astype(np.int64, copy=False),
        )
        self._pending.append(rows)
        if sum(len(rows.weights) for rows in self._pending) >= CHUNK:
            self._chunks.append(_joined(self._pending))
            self._pending = []

    def compute(self) -> dict[str, Metrics]:
        """Metrics of each label over all ranks, the same on every rank.

        Keys: auc, gauc (with groups), logloss, ne, calibration, and auc_error where AUC was binned.

        Raises:
            DataError: no row has weight; on every rank alike.
            DivergedError: a logit is not finite; likewise.
        """
        if self._pending:
            self._chunks.append(_joined(self._pending))
            self._pending = []
        counts = _summed(np.array([self.covered, sum(len(c.weights) for c in self._chunks)]), self.ranks)
        covered, weighted = int(counts[0]), int(counts[1])
        if not weighted:
            raise DataError(
                f"evaluation: none of {covered} rows has a positive sample weight; "
                "metrics need one, look at the weight column"
            )
        sums_T5 = _summed(np.stack([self._sums(task) for task in range(len(self.labels))]), self.ranks)
        for label, sums in zip(self.labels, sums_T5, strict=True):
            if sums[0] > 0:
                raise DivergedError(
                    f"evaluation: {int(sums[0])} of {weighted} logits of {label!r} are not finite, "
                    "so training has diverged; lower the learning rate"
                )
        result = {}
        for task, label in enumerate(self.labels):
            metrics = self._exact(task) if weighted <= self.exact_rows else self._binned(task)
            if self.group:
                metrics["gauc"] = self._gauc(task, parts=-(-weighted // self.exact_rows))
            result[label] = metrics | _pointwise(sums_T5[task, 1:])
        return result

    def _sums(self, task: int) -> Doubles:
        """(5,): logits that are not finite; weight of positives, of negatives; weighted loss and prediction."""
        sums = np.zeros(5)
        for rows in self._chunks:
            finite = np.isfinite(rows.logits[:, task])
            z = np.where(finite, rows.logits[:, task], 0.0).astype(np.float64)
            labels, w = rows.labels[:, task], rows.weights.astype(np.float64)
            loss = np.logaddexp(0.0, np.where(labels, -z, z))
            prediction = np.exp(-np.logaddexp(0.0, -z))
            sums += np.count_nonzero(~finite), w[labels].sum(), w[~labels].sum(), w @ loss, w @ prediction
        return sums

    def _exact(self, task: int) -> Metrics:
        chunks = (_packed(rows, task) for rows in self._chunks)
        rows = _gathered(chunks, len(self._chunks), _record(), self.ranks)
        value = None if rows is None else auc.auc(rows["logit"], rows["label"], rows["weight"])
        return {"auc": _from_first(value, self.ranks)}

    def _binned(self, task: int) -> Metrics:
        ends = np.full(2, -np.inf)  # minus the lowest logit, the highest
        for rows in self._chunks:
            logits = rows.logits[:, task]
            ends = np.maximum(ends, [-logits.min(initial=np.inf), logits.max(initial=-np.inf)])
        ends = _reduced(ends, self.ranks, dist.ReduceOp.MAX)
        low, high = -float(ends[0]), float(ends[1])
        counts = np.zeros((2, auc.BINS))
        for rows in self._chunks:
            counts += auc.histogram(rows.logits[:, task], rows.labels[:, task], rows.weights, low, high)
        value, error = auc.binned_auc(_summed(counts, self.ranks))
        return {"auc": value, "auc_error": error}

    def _gauc(self, task: int, parts: int) -> float | None:
        """Whole groups at a time, so that the first rank never holds many more than `exact_rows` rows."""
        total = auc.GroupSum()
        for part in range(parts):
            chunks = (_packed(rows, task, part, parts) for rows in self._chunks)
            rows = _gathered(chunks, len(self._chunks), _record(grouped=True), self.ranks)
            if rows is not None:
                total += auc.grouped_auc(rows["logit"], rows["label"], rows["weight"], rows["group"])
        return _from_first(total.mean, self.ranks)


def _pointwise(sums_4: Doubles) -> Metrics:
    positive, negative, loss, prediction = (float(x) for x in sums_4)
    weight = positive + negative
    entropy = -sum(part / weight * math.log(part / weight) for part in (positive, negative) if part > 0)
    return {
        "logloss": loss / weight,
        "ne": loss / weight / entropy if entropy > 0 else None,
        "calibration": prediction / positive if positive > 0 else None,
    }


class _Rows(NamedTuple):
    """Rows of positive weight."""

    logits: NDArray[np.float32]  # (N, T)
    labels: NDArray[np.bool_]  # (N, T)
    weights: NDArray[np.float32]  # (N,)
    groups: NDArray[np.int64] | None  # (N,)


def _joined(parts: Sequence[_Rows]) -> _Rows:
    logits, labels, weights, groups = zip(*parts, strict=True)
    ids = None if groups[0] is None else np.concatenate(groups)
    return _Rows(np.concatenate(logits), np.concatenate(labels), np.concatenate(weights), ids)


def _record(*, grouped: bool = False) -> np.dtype[np.void]:
    fields = [("logit", np.float32), ("weight", np.float32), ("label", np.bool_)]
    return np.dtype([*fields, ("group", np.int64)] if grouped else fields)


def _packed(rows: _Rows, task: int, part: int = 0, parts: int = 0) -> Records:
    """One task's rows as records to send; with `parts`, those of the part-th share of the groups."""
    grouped = parts > 0 and rows.groups is not None
    keep = np.ones(len(rows.weights), np.bool_)
    if grouped and rows.groups is not None:
        # Id 0 is missing or unseen: its rows have nothing in common.
        keep = (rows.groups != 0) & (rows.groups % parts == part)
    records = np.empty(np.count_nonzero(keep), dtype=_record(grouped=grouped))
    records["logit"] = rows.logits[keep, task]
    records["weight"] = rows.weights[keep]
    records["label"] = rows.labels[keep, task]
    if grouped and rows.groups is not None:
        records["group"] = rows.groups[keep]
    return records


def _device(ranks: dist.ProcessGroup) -> torch.device:
    """Where the ranks' messages must lie: on the host if any backend of theirs takes them there."""
    return torch.device("cpu" if "cpu:" in dist.get_backend_config(ranks) else "cuda")


def _reduced(array: Doubles, ranks: dist.ProcessGroup | None, how: dist.ReduceOp.RedOpType) -> Doubles:
    """The array reduced over the ranks; itself on a single one."""
    if ranks is None:
        return array
    tensor = torch.from_numpy(array).to(_device(ranks))
    dist.all_reduce(tensor, how, group=ranks)
    return tensor.cpu().numpy()


def _summed(array: NDArray[np.generic], ranks: dist.ProcessGroup | None) -> Doubles:
    return _reduced(array.astype(np.float64), ranks, dist.ReduceOp.SUM)


def _gathered(
    chunks: Iterable[Records], count: int, record: np.dtype[np.void], ranks: dist.ProcessGroup | None
) -> Records | None:
    """All ranks' records on the first one, None on the others; `chunks` yields `count` arrays here.

    Ranks hold different numbers of chunks and rows: one gather a chunk, padded to the longest.
    """
    empty = np.empty(0, record)
    if ranks is None:
        return np.concatenate([empty, *chunks])
    device, first = _device(ranks), dist.get_rank(ranks) == 0
    source = iter(chunks)
    received = [empty]
    for _ in range(int(_reduced(np.array([float(count)]), ranks, dist.ReduceOp.MAX)[0])):
        mine = next(source, empty)
        rows_W = np.zeros(dist.get_world_size(ranks))
        rows_W[dist.get_rank(ranks)] = len(mine)
        rows_W = _summed(rows_W, ranks)
        padded = np.zeros(int(rows_W.max()), record)
        padded[: len(mine)] = mine
        sent = torch.from_numpy(padded.view(np.uint8)).to(device)
        buffers = [torch.empty_like(sent) for _ in rows_W] if first else None
        dist.gather(sent, buffers, group=ranks, group_dst=0)
        for buffer, rows in zip(buffers or (), rows_W, strict=first):
            received.append(buffer.cpu().numpy().view(record)[: int(rows)].copy())
    return np.concatenate(received) if first else None


def _from_first(value: float | None, ranks: dist.ProcessGroup | None) -> float | None:
    """The first rank's value on every rank."""
    if ranks is None:
        return value
    tensor = torch.tensor([math.nan if value is None else value], dtype=torch.float64, device=_device(ranks))
    dist.broadcast(tensor, group=ranks, group_src=0)
    return None if tensor.isnan().item() else tensor.item()
