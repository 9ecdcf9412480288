"""Stands in for launcher/agent.py without torch: starts the ranks, stops them all when one fails, and
starts them again where the real one would.

The tests of the real one are in test_torchrun.py; this one starts in a tenth of the time.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from sparta.launcher.attempts import Attempts


def main() -> None:
    """Take the arguments of torchrun that the launcher gives."""
    logs, *words = sys.argv[1:]
    ranks = int(words[words.index("--nproc-per-node") + 1])
    attempts = Attempts(Path(logs), int(words[words.index("--max-restarts") + 1]))
    command, count = [sys.executable, *words[words.index("-m") :]], 0
    while codes := attempt(command, ranks, count):
        if not attempts.again(codes):
            attempts.give_up(codes)
            sys.exit(1)
        count += 1


def attempt(command: list[str], ranks: int, count: int) -> dict[int, int]:
    """Run all ranks to their end; exit codes of those that failed."""
    env = {name: value for name, value in os.environ.items() if name != "SPARTA_PARENT_PID"}
    env["TORCHELASTIC_RESTART_COUNT"] = str(count)
    started = [subprocess.Popen(command, env={**env, "RANK": str(rank)}) for rank in range(ranks)]
    while not any(process.poll() for process in started):
        if all(process.poll() == 0 for process in started):
            return {}
        time.sleep(0.01)
    time.sleep(0.1)
    for process in started:
        process.terminate()
    return {rank: process.wait() for rank, process in enumerate(started) if process.wait()}


if __name__ == "__main__":
    main()
