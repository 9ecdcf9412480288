"""`sparta compare` on this machine: prepare, run the cells in slots, make table and picture."""

import argparse
import json
import sys

from sparta.models.errors import ConfigError
from sparta.service.compare.arguments import cores, read
from sparta.service.compare.cells import Folder
from sparta.service.compare.run import Part, alone, check, check_jobs, go, listed, say
from sparta.service.run import write_atomically


def compare(arguments: argparse.Namespace) -> None:
    """Run the verb.

    Raises:
        ConfigError: a bad study, a cell that is no valid job, or another `sparta compare` at work in the folder.
        DataError: data that is missing or damaged.
    """
    folder, part = read(arguments)
    if arguments.submit:
        raise ConfigError(f"--submit {arguments.submit}: the service runs cells itself; use `sparta compare`")
    if arguments.dry_run:
        for line in listed(folder, part):
            say(line)
        return
    folder.make()
    if part.stages != ("table",):  # which one may look at while cells are run
        with alone(folder):
            run(folder, part, arguments.slots or cores())
    if "table" in part.stages:
        render(folder)


def run(folder: Folder, part: Part, number: int) -> None:
    """Make the datasets that are missing, and run the cells, so many at a time."""
    check_jobs(folder, part)
    if "prepare" in part.stages:
        from sparta.service.compare.datasets import prepare_all

        prepare_all(folder, part.data)
    if {"tune", "final"} & set(part.stages):
        check(folder, part, ranks=1)
        from sparta.service.compare.slots import slots

        try:
            with slots(folder, number) as runner:
                go(folder, part, runner)
        except KeyboardInterrupt:
            print("stopped; the same command goes on", file=sys.stderr)
            raise


def render(folder: Folder) -> None:
    """Write `study.json`, the table and the picture."""
    from sparta.service.compare.plot import draw
    from sparta.service.compare.result import collect
    from sparta.service.compare.table import document

    result = collect(folder)
    write_atomically(folder.result, json.dumps(result, indent=1, allow_nan=False) + "\n")
    write_atomically(folder.table, document(result))
    draw(result, folder.plot)
    print(document(result))
    print(f"{folder.table}, {folder.plot.name} and {folder.result.name} are in {folder.path}")
