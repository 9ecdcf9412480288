"""`sparta synth`: planted rows as raw Parquet files, with the spec that prepares them.

The values of a field are 8 hex digits, as in Criteo's log; `tags` are several such, joined by SEPARATOR.
"""

# n = rows of a chunk

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray

from sparta.models.errors import ConfigError
from sparta.service.data import planted
from sparta.service.data.planted import CHUNK, COUNTS, FIELDS, TAGS, Attainable, Field, Ints, Planted, Rows

LABEL = "label"
SEPARATOR = "|"
MIN_COUNT = 10
"""What prepare.yaml asks for: a value seen less often says less than its noise."""

_SMALL = 5_000
"""Fields of at most as many values are written as dictionaries, made once; larger ones as plain text."""
_HEX = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)[
    np.arange(1 << 16)[:, None] >> np.array([12, 8, 4, 0]) & 15
].view(np.uint32)[:, 0]  # the 4 digits of every 16-bit number


def synth(out: Path, *, rows: int, seed: int = 1) -> dict[str, Any]:
    """Make the folder `out` with {train,valid,test}.parquet (8:1:1), prepare.yaml and planted.json.

    Prints what is attainable and returns what planted.json holds. A folder that `synth` made before is
    replaced once the new one is complete.

    Raises:
        ConfigError: too few rows, a negative seed, or `out` exists and is not this function's work.
    """
    if rows < 10:
        raise ConfigError(f"--rows {rows}: a tenth of the rows is for the test, so there must be at least 10")
    if seed < 0:
        raise ConfigError(f"--seed {seed} is negative; seeds are 0, 1, 2, ...")
    if out.exists() and not (out / "planted.json").is_file():
        raise ConfigError(f"{out}: exists and is not the work of `sparta synth`; name another folder")
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        facts = _write(partial, rows, seed)
        if out.exists():
            shutil.rmtree(out)
        partial.rename(out)
    except OSError as error:
        raise ConfigError(
            f"{out}: cannot be written ({error.strerror or error}); name another folder"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    best = ", ".join(f"{name} {value:.4f}" for name, value in facts["attainable"][LABEL].items())
    print(f"{out}: {rows:,} rows, {facts['positives']:.1%} positive; attainable on the test rows: {best}")
    return facts


def _write(folder: Path, rows: int, seed: int) -> dict[str, Any]:
    model = Planted(seed)
    attainable, positives = Attainable(), 0
    splits = {"train": rows - 2 * (rows // 10), "valid": rows // 10, "test": rows // 10}
    texts = Texts(model)
    for split, n in splits.items():
        with pq.ParquetWriter(
            folder / f"{split}.parquet",
            texts.schema,
            compression="zstd",
            use_dictionary=texts.small,
            store_schema=False,  # else readers would get the dictionaries instead of plain text
        ) as writer:
            for chunk in model.split(split, n):
                writer.write_table(texts.table(chunk), row_group_size=CHUNK)
                positives += int(chunk.label.sum())
                if split == "test":
                    attainable.add(chunk.probability, chunk.label)
    metrics, error = attainable.result()
    facts = {
        "rows": splits,
        "seed": seed,
        "positives": positives / rows,
        "attainable": {LABEL: metrics},
        "auc_error": error,
        "intercept": model.intercept,
        "parameters": {
            name.lower(): getattr(planted, name)
            for name in ("K", "FIRST", "PAIRS", "DENSE", "SIZE", "HEAD", "FADE", "ZIPF")
        },
    }
    (folder / "planted.json").write_text(json.dumps(facts, indent=1) + "\n")
    spec = {
        "files": {split: f"{split}.parquet" for split in splits},
        "labels": [LABEL],
        "defaults": {"dense": {"transform": "log1p_standardise"}, "sparse": {"min_count": MIN_COUNT}},
        "dense": [count.name for count in COUNTS],
        "sparse": {field.name: {} for field in FIELDS} | {TAGS.name: {"separator": SEPARATOR}},
        "attainable": facts["attainable"],
    }
    (folder / "prepare.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    return facts


class Texts:
    """Turns chunks into Arrow tables."""

    def __init__(self, model: Planted) -> None:
        self._keys = (model.keys >> np.uint64(32)).astype(np.uint32)
        self._dictionaries = {
            field.name: self._plain(f, np.arange(field.values))
            for f, field in enumerate(FIELDS)
            if field.values <= _SMALL
        }
        self.small = list(self._dictionaries)
        self.schema = pa.schema(
            [(LABEL, pa.int32())]
            + [(count.name, pa.int32()) for count in COUNTS]
            + [(field.name, self._type(field)) for field in FIELDS]
            + [(TAGS.name, pa.string())]
        )

    def table(self, rows: Rows) -> pa.Table:
        """The chunk in the columns of the file."""
        columns = [pa.array(rows.label.astype(np.int32))]
        columns += [pa.array(dense.astype(np.int32), mask=dense < 0) for dense in rows.dense]
        columns += [self._column(f, field, rows.values[f]) for f, field in enumerate(FIELDS)]
        columns.append(self._tags(rows.tags, rows.tag_counts))
        return pa.table(columns, schema=self.schema)

    def _type(self, field: Field) -> pa.DataType:
        return pa.dictionary(pa.int32(), pa.string()) if field.name in self._dictionaries else pa.string()

    def _column(self, f: int, field: Field, values: Ints) -> pa.Array:
        if field.name not in self._dictionaries:
            return self._plain(f, values)
        index = pa.array(values.astype(np.int32), mask=values < 0)
        return pa.DictionaryArray.from_arrays(index, self._dictionaries[field.name])

    def _digits(self, f: int, values: Ints) -> NDArray[np.uint8]:
        """(n,) values -> (n, 8) ASCII."""
        number = _mix32(values.astype(np.uint32) ^ self._keys[f])
        halves = np.stack([_HEX[number >> np.uint32(16)], _HEX[number & np.uint32(0xFFFF)]], axis=1)
        return halves.view(np.uint8)

    def _plain(self, f: int, values: Ints) -> pa.Array:
        there = values >= 0
        return _strings(self._digits(f, values[there]).tobytes(), 8 * there, there)

    def _tags(self, tags: Ints, counts: Ints) -> pa.Array:
        """All texts with a separator before each, then without a row's first."""
        pieces = np.empty((len(tags), len(SEPARATOR) + 8), dtype=np.uint8)
        pieces[:, 0] = ord(SEPARATOR)
        pieces[:, 1:] = self._digits(len(FIELDS), tags)
        there = counts > 0
        keep = np.ones(pieces.shape, dtype=bool)
        keep[(np.cumsum(counts) - counts)[there], 0] = False
        return _strings(pieces[keep].tobytes(), np.maximum(9 * counts - 1, 0), there)


def _strings(data: bytes, lengths: Ints, there: NDArray[np.bool_]) -> pa.Array:
    """An Arrow text column from the bytes of all texts, their lengths, and which rows are not null."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    valid = np.packbits(there, bitorder="little")
    buffers = [pa.py_buffer(part) for part in (valid, offsets, data)]
    return pa.Array.from_buffers(pa.string(), len(lengths), buffers)


def _mix32(x: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """MurmurHash3's finaliser (Appleby, 2011): a bijection, so that values stay distinct."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))
