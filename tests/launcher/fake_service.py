"""Stands in for `python -m sparta.service`: on each rank it does what its `--do` options say, in order.

--do WHO:ACTION[:ARGUMENT]   WHO is a rank, `*` for all, `-` for a single process
"""

import os
import signal
import sys
import time
from pathlib import Path


def act(action: str, argument: str) -> None:
    """Do one thing a rank might do."""
    match action:
        case "print":
            print(argument)
        case "warn":
            print(argument, file=sys.stderr)
        case "raw":
            os.write(2, argument.encode().decode("unicode_escape").encode("latin1"))
        case "error":
            print(f"error: {argument}", file=sys.stderr)
            sys.exit(3)
        case "exit":
            sys.exit(int(argument))
        case "crash":
            raise RuntimeError(argument)
        case "kill":
            os.kill(os.getpid(), signal.Signals[argument])
        case "ignore":
            signal.signal(signal.Signals[argument], signal.SIG_IGN)
        case "sleep":
            time.sleep(float(argument))
        case "show":
            print(f"{argument}={os.environ.get(argument)}")
        case "arguments":
            print(sys.argv[1:])
        case "pids":
            # A rank's parent is torchrun.
            Path(argument, str(os.getppid())).touch()
            Path(argument, str(os.getpid())).touch()
        case _:
            raise ValueError(action)


def main() -> None:
    """Follow the script."""
    rank = os.environ.get("RANK", "-")
    for word, step in zip(sys.argv, sys.argv[1:], strict=False):
        if word == "--do":
            who, action, *argument = step.split(":", 2)
            if who in ("*", rank):
                act(action, argument[0] if argument else "")


if __name__ == "__main__":
    main()
