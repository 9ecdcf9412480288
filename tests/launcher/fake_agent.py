"""Stands in for launcher/agent.py without torch: starts the ranks, stops them all when one fails.

The tests of the real one are in test_torchrun.py; this one starts in a tenth of the time.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    """Take the arguments of torchrun that the launcher gives."""
    logs, *words = sys.argv[1:]
    ranks = int(words[words.index("--nproc-per-node") + 1])
    command = [sys.executable, *words[words.index("-m") :]]
    env = {name: value for name, value in os.environ.items() if name != "SPARTA_PARENT_PID"}
    started = [subprocess.Popen(command, env={**env, "RANK": str(rank)}) for rank in range(ranks)]
    while not any(process.poll() for process in started):
        if all(process.poll() == 0 for process in started):
            return
        time.sleep(0.01)
    time.sleep(0.1)
    for process in started:
        process.terminate()
    codes = {rank: process.wait() for rank, process in enumerate(started) if process.wait()}
    Path(logs, "failures.json").write_text(json.dumps(codes))
    sys.exit(1)


if __name__ == "__main__":
    main()
