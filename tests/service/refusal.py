"""How a refusal looks to the user: the real entry point, in this process, as one rank."""

import io
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sparta.service.__main__ import main


def sparta(*argv: object) -> tuple[int, str, str]:
    """Run `sparta ARGV`: exit code, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(word) for word in argv])
    return code, out.getvalue(), err.getvalue()


def contents(folder: Path) -> dict[Path, bytes | None]:
    """Every file below a folder with its bytes, every folder with None."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def refused(folder: Path, *argv: object, code: int, leaves: Path | None = None) -> str:
    """Check that `sparta ARGV` ends in one line, changes nothing below `folder`, and makes at most `leaves`.

    The line is returned without `error: `.
    """
    before = contents(folder)
    found, out, err = sparta(*argv)
    assert (found, out) == (code, ""), err
    assert err.startswith("error: "), err
    assert err.count("\n") == 1, err
    after = contents(folder)
    assert {path: after.get(path, b"gone") for path in before} == before
    new = [path for path in after if path not in before and leaves not in (path, *path.parents)]
    assert new == []
    return err.removeprefix("error: ").removesuffix("\n")


def part(dataset: Path, split: str) -> Path:
    """The first file of a split."""
    return min((dataset / split).glob("part-*.parquet"))


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table], **options: Any) -> None:
    """Replace a Parquet file by a changed table, as valid Parquet."""
    pq.write_table(change(pq.read_table(path)), path, write_page_checksum=True, **options)


def poke(column: str, row: int, value: object) -> Callable[[pa.Table], pa.Table]:
    """Put a value into one place; the column keeps its type."""

    def change(table: pa.Table) -> pa.Table:
        at = table.schema.get_field_index(column)
        values = table.column(at).to_pylist()
        values[row] = value
        kind = table.schema.field(at).type
        return table.set_column(at, pa.field(column, kind), pa.array(values, kind))

    return change


def retyped(column: str, kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    """Give a column another type."""

    def change(table: pa.Table) -> pa.Table:
        at = table.schema.get_field_index(column)
        return table.set_column(at, column, table.column(at).cast(kind))

    return change
