"""torchrun, with its own talk in a log and the ranks' exit codes in a file.

torchrun exits with 1 whatever happened and explains itself in a traceback of many lines. This stands in
for `python -m torch.distributed.run`, takes the same arguments after the folder of the logs, and writes
`failures.json`: {"<rank>": exit code, negative for a signal}.
"""

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from sparta.launcher.rank import append_to
from sparta.launcher.tether import PARENT, tether

LOG = "torchrun.log"
FAILURES = "failures.json"


def main(argv: Sequence[str]) -> None:
    """Run torchrun with `argv` after the folder of the logs."""
    logs = Path(argv[0])
    tether(signal.SIGTERM)
    os.environ[PARENT] = str(os.getpid())
    append_to(logs / LOG, 1, 2)
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun(list(argv[1:]))
    except ChildFailedError as error:
        codes = {str(rank): failure.exitcode for rank, failure in error.failures.items()}
        (logs / FAILURES).write_text(json.dumps(codes))
        raise


if __name__ == "__main__":
    main(sys.argv[1:])
