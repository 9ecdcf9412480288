"""`python -m tests.faults.small_disk JOB FOLDER SAVE`, with FOLDER on a small file system that this process may fill.

Trains in FOLDER/run on two ranks while the disk is full in one save; prints what became of it as JSON.
"""

import json
import sys
from pathlib import Path

from sparta.service.checkpoint import inspect
from sparta.service.checkpoint.storage import Storage
from tests.faults import harness, inject
from tests.faults.ranks import start


def main(job: Path, folder: Path, save: int) -> None:
    run = folder / "run"
    attempt = start(job, run, 2, inject.fill_disk, folder, save)
    codes = attempt.wait()
    entries = inspect.entries(Storage(run / "checkpoints"), every_byte=True)
    result = json.loads((run / "result.json").read_text()) if codes == [0, 0] else {}
    print(
        json.dumps(
            {
                "codes": codes,
                "said": attempt.said(0),
                "states": {entry.name: entry.state for entry in entries},
                "failed": result.get("checkpoints", {}).get("failed"),
                "digests": harness.digests(run) if codes == [0, 0] else None,
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
