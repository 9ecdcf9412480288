"""Replays a trajectory file and prints the largest absolute error of each of its tensors.

    python -m tests.replay FILE.npz [--engine oracle|rows] [--ranks 2] [--plan row_wise] [--tolerance 1e-12]

Exits with 1 if an error is above the tolerance, with 2 if there is nothing to compare.
"""

import argparse
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch

from tests.trajectory import Trajectory, TrajectoryError

Engine = Callable[[Trajectory, int, str | None], dict[str, float]]
"""(file, ranks, plan) -> the largest absolute error of each tensor it could compare."""

ENGINES = {"oracle": "tests.replay_oracle", "rows": "tests.replay_rows"}
TOLERANCES = {"oracle": 1e-12, "rows": 1e-5}


def engine(name: str) -> Engine:
    """An engine's function, `errors` of its module."""
    home = ENGINES[name]
    try:
        found: Engine = import_module(home).errors
    except ModuleNotFoundError as error:
        if error.name != home:
            raise
        raise TrajectoryError(
            f"engine {name}: there is no {home.replace('.', '/')}.py to replay it"
        ) from None
    return found


def replay(path: Path, *, name: str, ranks: int, plan: str | None) -> dict[str, float]:
    """The errors of a file on an engine.

    Raises:
        TrajectoryError: a malformed file, or one that the engine cannot replay.
    """
    if ranks < 1:
        raise TrajectoryError(f"--ranks {ranks}; it is 1 or more")
    file = Trajectory.read(path)
    if name == "oracle" and (ranks != 1 or plan is not None):
        raise TrajectoryError(
            "engine oracle is one process without a plan; leave --ranks and --plan out, or take --engine rows"
        )
    if name != "oracle" and file.authors:
        raise TrajectoryError(
            f"{path}: the published code's trajectory, which only --engine oracle reproduces; leave --ranks and "
            "--plan out"
        )
    return engine(name)(file, ranks, plan)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.replay", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument(
        "--engine", choices=sorted(ENGINES), default=None, help="rows where --ranks or --plan say so"
    )
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--plan", default=None, help="sharding type of every table, for engine rows")
    parser.add_argument("--tolerance", type=float, default=None, help=str(TOLERANCES))
    given = parser.parse_args(arguments)
    name = given.engine or ("oracle" if given.ranks == 1 and given.plan is None else "rows")
    tolerance = TOLERANCES[name] if given.tolerance is None else given.tolerance
    try:
        errors = replay(given.file, name=name, ranks=given.ranks, plan=given.plan)
    except TrajectoryError as error:
        print(error, file=sys.stderr)
        return 2
    width = max(map(len, errors))
    for key, error in sorted(errors.items()):
        print(f"{key:{width}}  {error:.2e}{'' if error <= tolerance else '  above the tolerance'}")
    failed = sum(not error <= tolerance for error in errors.values())
    print(f"{len(errors)} tensors, {failed} above {tolerance:g}")
    return 1 if failed else 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
