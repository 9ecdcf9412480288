"""One rank: its output goes to its own log, its life is tied to torchrun's, then it becomes the service.

`python -m sparta.launcher.rank LOGS MODULE VERB ARGS`, started by torchrun. A restarted rank appends.
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from sparta.launcher.tether import tether


def log_path(logs: Path, rank: int) -> Path:
    """Where a rank's stdout and stderr go, together and in order."""
    return logs / f"rank-{rank}.log"


def redirect(path: Path) -> None:
    """Append stdout and stderr of this process, and of what it becomes, to a file."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def main(argv: Sequence[str]) -> None:
    """Become `python -m MODULE VERB ARGS`."""
    logs, *command = argv
    tether(signal.SIGKILL)
    redirect(log_path(Path(logs), int(os.environ["RANK"])))
    os.execv(sys.executable, [sys.executable, "-u", "-m", *command])


if __name__ == "__main__":
    main(sys.argv[1:])
