"""Rows in the shape of Criteo's click log whose labels come from a planted model, so that the best metrics are known.

13 dense columns I1..I13 (skewed counts), 26 categorical ones C1..C26 (8 hex digits, Zipf frequencies, the
table sizes of Criteo's log), the multi-valued `tags`, and a label drawn with the planted probability

    logit = intercept + sum_i w_i + sum_{i<j} <v_i, v_j>        (a factorisation machine, Rendle 2010)

over 27 categorical and 13 dense fields, where (w_i, v_i) is hashed from (seed, field, value): nothing is
stored per id. Rows come in chunks, each drawn from its own generator seeded by (seed, split, chunk), so
memory does not grow with the rows and the first rows of a split do not depend on how many follow.
"""

# n = rows of a chunk, D = 13 dense columns, K = latent factors

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparta.service.data.hashing import mix64

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

CHUNK = 65536
"""Rows drawn and written at a time; also the row group of the files."""
K = 2

POSITIVES = 0.25
FIRST = 1.1
"""Standard deviation of the first-order part of the logit."""
PAIRS = 0.8
"""Standard deviation of the pairwise part."""
DENSE = 0.3
"""Effect of a dense column, per standard deviation of log1p, where that of a table of one value is 1."""
SIZE = 0.25
"""Effects in a table of s values shrink as s ** -SIZE: the more values, the less one of them says."""
HEAD, FADE = 5, 0.5
"""Effects of the r-th most frequent value shrink as (1 + r / HEAD) ** -FADE: rare ids matter, each less."""
ZIPF = 1.3
"""Frequency of the r-th value is about proportional to (r + 1) ** -ZIPF."""


@dataclass(frozen=True)
class Field:
    """One categorical field; value r (from 0) is the r-th most frequent."""

    name: str
    values: int
    missing: float = 0.0

    def draw(self, uniform: NDArray[np.float64]) -> Ints:
        """Values by inverting the distribution function of the bounded power law."""
        power = 1.0 - ZIPF
        last = (self.values + 1.0) ** power - 1.0
        value: Ints = np.power(1.0 + uniform * last, 1.0 / power).astype(np.int64) - 1
        return np.minimum(value, self.values - 1)


@dataclass(frozen=True)
class Count:
    """One dense column: exp(normal) rounded down, of which log1p is near to normal."""

    name: str
    location: float
    spread: float
    missing: float = 0.0


# Table sizes and missing rates of Criteo's display advertising challenge, rounded.
_SIZES = (
    *(1_460, 580, 10_000_000, 2_200_000, 305, 24, 12_500, 630, 3, 93_000, 5_700, 8_300_000, 3_200),
    *(27, 15_000, 5_500_000, 10, 5_650, 2_170, 4, 7_000_000, 18, 15, 286_000, 105, 142_000),
)
_SPARSE_MISSING = {3: 0.03, 4: 0.03, 6: 0.12, 12: 0.03, 16: 0.03, 19: 0.44, 20: 0.44, 21: 0.03, 22: 0.76}
_SPARSE_MISSING |= {24: 0.03, 25: 0.44, 26: 0.44}
_LOCATIONS = (0.3, 1.0, 1.0, 0.8, 2.0, 1.6, 0.8, 1.0, 1.8, 0.0, 0.4, 0.0, 0.8)
_SPREADS = (0.9, 1.1, 1.0, 0.8, 1.2, 1.1, 1.0, 0.8, 1.0, 0.7, 0.8, 0.9, 0.8)
_DENSE_MISSING = (0.45, 0.0, 0.2, 0.2, 0.03, 0.22, 0.04, 0.0, 0.04, 0.45, 0.04, 0.76, 0.2)

FIELDS = tuple(Field(f"C{i}", size, _SPARSE_MISSING.get(i, 0.0)) for i, size in enumerate(_SIZES, start=1))
COUNTS = tuple(
    Count(f"I{i}", *rest) for i, rest in enumerate(zip(_LOCATIONS, _SPREADS, _DENSE_MISSING, strict=True), 1)
)
TAGS = Field("tags", 1_000)
MOST_TAGS = 4
"""A row has 0 to 4 tags, each number equally often; their effects are averaged."""

_STREAMS = ("train", "valid", "test", "pilot")


def _effects(key: np.uint64, values: Ints) -> Floats:
    """(n,) -> (1 + K, n) of (w, v), uniform with variance 1: 16-bit lanes of one hash."""
    bits = mix64(values.view(np.uint64) ^ key)
    lanes = np.stack([(bits >> np.uint64(16 * lane)).astype(np.uint16) for lane in range(1 + K)])
    return (lanes.astype(np.float32) - np.float32(32767.5)) * np.float32(3**0.5 / 32768)


@dataclass(frozen=True)
class Rows:
    """One chunk, before it is written."""

    values: Ints
    """(26, n) of the categorical fields, -1 = missing."""
    tags: Ints
    """Values of all rows' tags, one row after the other."""
    tag_counts: Ints
    """(n,)"""
    dense: Ints
    """(D, n), -1 = missing."""
    probability: NDArray[np.float64]
    """(n,) that the label is 1; what no model can improve on."""
    label: NDArray[np.int8]
    """(n,) 0 or 1, drawn with that probability: this is the noise."""


class Planted:
    """The model behind the labels of one seed, and the rows drawn with it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        fields = len(FIELDS) + 1 + len(COUNTS)
        self.keys = mix64(np.arange(fields, dtype=np.uint64) ^ mix64(np.array([seed], dtype=np.uint64)))
        self.dense_effects = DENSE * np.concatenate(
            [_effects(key, np.zeros(1, dtype=np.int64)) for key in self.keys[len(FIELDS) + 1 :]], axis=1
        )  # (1 + K, D)
        self._calibrate()

    def _calibrate(self) -> None:
        """Centre and scale on rows of a stream of their own, so that every seed is about equally hard."""
        drawn = self._draw("pilot", 0)[:4]
        counts = [count[count >= 0] for count in drawn[3]]
        self.z_mean = np.array([np.log1p(count).mean() for count in counts], dtype=np.float32)
        self.z_std = np.array([np.log1p(count).std() for count in counts], dtype=np.float32)
        # Latent vectors are centred per field, so that no pair leaks into the first-order effects.
        self.centre = np.zeros((len(FIELDS) + 1, K), dtype=np.float32)
        self.centre[:] = [effects[1:].mean(1) for effects in self._field_effects(*drawn[:3])]
        first, pairs = self._parts(*drawn)
        self.scales = (FIRST / first.std(), PAIRS / pairs.std())
        logit = self.scales[0] * first + self.scales[1] * pairs
        low, high = -20.0, 20.0
        while high - low > 1e-9:
            self.intercept = (low + high) / 2
            few = (1 / (1 + np.exp(-logit - self.intercept))).mean() < POSITIVES
            low, high = (self.intercept, high) if few else (low, self.intercept)

    def rows(self, split: str, chunk: int) -> Rows:
        """The chunk's CHUNK rows: a pure function of (seed, split, chunk)."""
        values, tags, tag_counts, dense, uniform = self._draw(split, chunk)
        first, pairs = self._parts(values, tags, tag_counts, dense)
        logit = self.intercept + self.scales[0] * first + self.scales[1] * pairs
        probability = 1 / (1 + np.exp(-logit.astype(np.float64)))
        label = (uniform < probability).astype(np.int8)
        return Rows(values, tags, tag_counts, dense, probability, label)

    def split(self, split: str, rows: int) -> Iterator[Rows]:
        """The first `rows` rows of a split, chunk by chunk."""
        for chunk in range(-(-rows // CHUNK)):
            yield _head(self.rows(split, chunk), min(CHUNK, rows - chunk * CHUNK))

    def _draw(self, split: str, chunk: int) -> tuple[Ints, Ints, Ints, Ints, NDArray[np.float64]]:
        """Values, tags, tag counts, dense, and the uniform number that decides the label."""
        rng = np.random.Generator(np.random.PCG64([self.seed, _STREAMS.index(split), chunk]))
        values = np.empty((len(FIELDS), CHUNK), dtype=np.int64)
        for f, field in enumerate(FIELDS):
            values[f] = field.draw(rng.random(CHUNK))
            if field.missing:
                values[f, rng.random(CHUNK, dtype=np.float32) < field.missing] = -1
        tag_counts = rng.integers(0, MOST_TAGS + 1, CHUNK)
        tags = TAGS.draw(rng.random(int(tag_counts.sum())))
        dense = np.empty((len(COUNTS), CHUNK), dtype=np.int64)
        for d, count in enumerate(COUNTS):
            dense[d] = np.exp(count.location + count.spread * rng.standard_normal(CHUNK, dtype=np.float32))
            if count.missing:
                dense[d, rng.random(CHUNK, dtype=np.float32) < count.missing] = -1
        return values, tags, tag_counts, dense, rng.random(CHUNK)

    def _field_effects(self, values: Ints, tags: Ints, tag_counts: Ints) -> Iterator[Floats]:
        """(1 + K, n) of one categorical field after the other; a missing value has none."""
        for f, field in enumerate(FIELDS):
            yield self._faded(f, field, values[f])
        total = np.zeros((1 + K, CHUNK), dtype=np.float32)
        some = tag_counts > 0
        starts = (np.cumsum(tag_counts) - tag_counts)[some]
        effects = self._faded(len(FIELDS), TAGS, tags)
        total[:, some] = np.add.reduceat(effects, starts, axis=1) / tag_counts[some].astype(np.float32)
        yield total

    def _faded(self, f: int, field: Field, values: Ints) -> Floats:
        fade = np.float32(field.values**-SIZE) / np.sqrt(1 + values.astype(np.float32) / HEAD) ** (2 * FADE)
        fade[values < 0] = 0
        effects = _effects(self.keys[f], values)
        effects *= fade
        return effects

    def _parts(self, values: Ints, tags: Ints, tag_counts: Ints, dense: Ints) -> tuple[Floats, Floats]:
        """Unscaled first-order and pairwise sums, (n,) each; a missing count has no effect either."""
        first = np.zeros(CHUNK, dtype=np.float32)
        total = np.zeros((K, CHUNK), dtype=np.float32)
        squares = np.zeros(CHUNK, dtype=np.float32)
        for f, effects in enumerate(self._field_effects(values, tags, tag_counts)):
            first += effects[0]
            v = effects[1:] - self.centre[f][:, None]
            total += v
            squares += np.einsum("kn,kn->n", v, v)
        for d, count in enumerate(dense):
            z = (np.log1p(np.maximum(count, 0).astype(np.float32)) - self.z_mean[d]) / self.z_std[d]
            z[count < 0] = 0
            w, *v = self.dense_effects[:, d]
            first += w * z
            for k in range(K):
                total[k] += v[k] * z
            squares += np.float32(np.dot(v, v)) * z * z
        return first, (np.einsum("kn,kn->n", total, total) - squares) / 2


def _head(rows: Rows, n: int) -> Rows:
    if n == CHUNK:
        return rows
    tags = rows.tags[: rows.tag_counts[:n].sum()]
    rest = rows.dense[:, :n], rows.probability[:n], rows.label[:n]
    return Rows(rows.values[:, :n], tags, rows.tag_counts[:n], *rest)


class Attainable:
    """AUC and LogLoss of the planted probabilities themselves, from a histogram of 2^20 bins."""

    BINS = 1 << 20

    def __init__(self) -> None:
        self.counts = np.zeros((2, self.BINS), dtype=np.int64)
        self.loss = 0.0

    def add(self, probability: NDArray[np.float64], label: NDArray[np.int8]) -> None:
        bins = (probability * self.BINS).astype(np.int64)
        for y in (0, 1):
            self.counts[y] += np.bincount(bins[label == y], minlength=self.BINS)
        self.loss -= float(np.log(np.where(label == 1, probability, 1 - probability)).sum())

    def result(self) -> tuple[dict[str, float], float]:
        """The metrics, and how far the AUC may be off, because a bin's pairs count half each.

        A single class has no AUC.
        """
        negatives, positives = self.counts
        pairs = float(negatives.sum()) * float(positives.sum())
        logloss = self.loss / float(self.counts.sum())
        if pairs == 0:
            return {"logloss": logloss}, 0.0
        below = np.cumsum(negatives) - negatives
        same = float((positives * negatives).sum()) / 2
        return {"auc": (float((positives * below).sum()) + same) / pairs, "logloss": logloss}, same / pairs
