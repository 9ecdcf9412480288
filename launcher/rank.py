"""One rank: its output goes to files of its own, its life is tied to torchrun's, then it becomes the service.

`python -m sparta.launcher.rank LOGS MODULE VERB ARGS`, started by torchrun. A restarted rank appends.
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from sparta.launcher.tether import tether


def log_path(logs: Path, rank: int) -> Path:
    """Where a rank's stderr goes, and its stdout with it unless it is rank 0."""
    return logs / f"rank-{rank}.log"


def output_path(logs: Path, rank: int) -> Path:
    """Where a rank's stdout goes: rank 0's are the results, which the user may redirect."""
    return logs / "rank-0.out" if rank == 0 else log_path(logs, rank)


def append_to(path: Path, *descriptors: int) -> None:
    """Append what is written to the descriptors, also by what this process becomes, to a file."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for descriptor in descriptors:
        os.dup2(file, descriptor)
    os.close(file)


def main(argv: Sequence[str]) -> None:
    """Become `python -m MODULE VERB ARGS`."""
    folder, *command = argv
    logs, rank = Path(folder), int(os.environ["RANK"])
    tether(signal.SIGKILL)
    append_to(output_path(logs, rank), 1)
    append_to(log_path(logs, rank), 2)
    os.execv(sys.executable, [sys.executable, "-u", "-m", *command])


if __name__ == "__main__":
    main(sys.argv[1:])
