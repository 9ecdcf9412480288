"""Stands in for `python -m sparta.service`: on each rank it does what its `--do` options say, in order.

--do WHO:ACTION[:ARGUMENT]   WHO is a rank, `*` for all, `-` for a single process, with `@N` in attempt N only
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from sparta.launcher.beats import BEATS


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
        case "beat":  # the step it began from, its last step
            began, step = map(int, argument.split("-"))
            rank = int(os.environ["RANK"])
            beat = {"rank": rank, "host": "node7", "step": step, "began": began, "phase": "step"}
            Path(os.environ[BEATS], f"rank-{rank}.beat").write_text(json.dumps(beat).ljust(256))
        case (
            "stop"
        ):  # what the service does when it is told to stop: at step ARGUMENT, rank 0 leaves a marker
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(stopped(argument)))
        case "stopped":
            stopped(argument)
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


def stopped(step: str) -> None:
    """Leave the marker of an orderly stop, if we are rank 0."""
    if os.environ["RANK"] == "0":
        marker = {"step": int(step), "checkpoint": int(step), "reason": "SIGTERM"}
        Path(os.environ[BEATS], "../../STOPPED").write_text(json.dumps(marker))


def main() -> None:
    """Follow the script."""
    rank, attempt = os.environ.get("RANK", "-"), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    for word, step in zip(sys.argv, sys.argv[1:], strict=False):
        if word == "--do":
            who, action, *argument = step.split(":", 2)
            who, _, when = who.partition("@")
            if who in ("*", rank) and when in ("", attempt):
                act(action, argument[0] if argument else "")


if __name__ == "__main__":
    main()
