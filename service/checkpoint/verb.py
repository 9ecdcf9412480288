"""`sparta checkpoint`: list, verify or export the checkpoints of a run. Only `export` loads torch."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from sparta.models.errors import ConfigError, DataError
from sparta.service.checkpoint.find import find, is_export
from sparta.service.checkpoint.inspect import Entry, entries
from sparta.service.checkpoint.storage import Storage
from sparta.service.report import show_checkpoints
from sparta.service.run import RunDirectory

OPTIONS = {"out": ("export",), "checkpoint": ("export",), "json": ("list", "verify")}
"""Who takes an option; the others do not pass over it in silence."""


def checkpoint(arguments: argparse.Namespace) -> None:
    """Do what the command line says.

    Raises:
        ConfigError: an option that has no meaning here, or no run directory.
        DataError: no checkpoint, or a damaged one.
    """
    what, run = arguments.what, RunDirectory(arguments.run)
    for option, takers in OPTIONS.items():
        if what not in takers and getattr(arguments, option) not in (None, False):
            raise ConfigError(
                f"--{option}: is for {' and '.join(takers)}; leave it out of `sparta checkpoint {what}`"
            )
    if is_export(run.path):
        raise ConfigError(
            f"{run.path}: is an export, not a run, so it has no checkpoints; name the run it was made from"
        )
    job = run.read_job()
    storage = Storage(job.checkpoint.path or run.checkpoints)
    if what == "export":
        if arguments.out is None:
            raise ConfigError("--out is missing; name the folder to make")
        _export(run, storage, find(storage, arguments.checkpoint or run.tested(job)), arguments.out)
        return
    found = entries(storage, every_byte=what == "verify")
    if not found:
        raise DataError(f"{storage.root}: holds no checkpoint; train first with `sparta train`")
    if arguments.json:
        print(json.dumps([asdict(entry) for entry in found]))
    else:
        show_checkpoints(found)
    if what == "verify":
        _refuse_damage(storage, found)


def _refuse_damage(storage: Storage, found: list[Entry]) -> None:
    """Name the newest damaged checkpoint, and what is left.

    Raises:
        DataError: there is one.
    """
    damaged, complete = (
        [entry for entry in found if entry.state == state] for state in ("damaged", "complete")
    )
    if not damaged:
        return
    more = f" ({len(damaged)} are damaged)" if len(damaged) > 1 else ""
    way_out = (
        f"`sparta train --resume` takes the newest that is complete, {complete[-1].name}"
        if complete
        else "no checkpoint of the run is complete, so train again with another --run-dir"
    )
    raise DataError(f"{storage.place(damaged[-1].name)}: {damaged[-1].problem}{more}; {way_out}")


def _export(run: RunDirectory, storage: Storage, name: str, out: Path) -> None:
    from sparta.service.checkpoint.export import export

    size = export(run, storage, name, out)
    print(f"{out}: {name} of {run.path}, {size:,} bytes of weights in safetensors files")
