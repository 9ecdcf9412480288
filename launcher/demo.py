"""`sparta demo`: the commands a newcomer would type, typed for them; nothing happens that is not shown.

Data goes to data/demo (reused once it is complete), the run to runs/demo.
"""

import argparse
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path

from sparta.launcher.run_directory import RUNS
from sparta.launcher.tether import tether

ROWS = 1_000_000
DATA = Path("data")
SEED = 1


def demo(argv: Sequence[str]) -> int:
    """Run the demo; the exit code of the first command that fails, else 0."""
    parser = argparse.ArgumentParser(
        prog="sparta demo", description="Synthetic data, DeepFM on 2 ranks, a result."
    )
    parser.add_argument(
        "--rows", type=int, default=ROWS, help="rows of synthetic data (default: %(default)s)"
    )
    rows = parser.parse_args(argv).rows
    data = DATA / ("demo" if rows == ROWS else f"demo-{rows}")
    with as_file(files("sparta.launcher") / "jobs" / "demo.yaml") as job:
        for command in commands(rows, data, job):
            print(f"$ {shlex.join(['sparta', *command])}", flush=True)
            code = sparta(command)
            if code:
                return code
    print(_next_steps(newest_run()))
    return 0


def commands(rows: int, data: Path, job: Path) -> list[list[str]]:
    """What is typed; a dataset folder that is complete is not made again."""
    raw = data.with_name(data.name + "-raw")
    make = [
        ["synth", "--out", str(raw), "--rows", str(rows), "--seed", str(SEED)],
        ["prepare", str(raw / "prepare.yaml"), "--out", str(data)],
    ]
    train = ["train", _short(job)]
    if data != DATA / "demo":
        train += ["--set", f"data.path={data}"]
    # `prepare` renames the folder into place when it is complete.
    return [train] if (data / "schema.json").exists() else [*make, train]


def sparta(command: Sequence[str]) -> int:
    """Run one `sparta` command in this terminal; its exit code, 128 + n for signal n."""
    started: list[subprocess.Popen[bytes]] = []
    asked: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        asked.append(number)
        for process in started:
            process.send_signal(number)

    # Ctrl-C reaches the whole foreground group: the command gets it too, and we wait for its end.
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda number, frame: None),
        signal.SIGTERM: signal.signal(signal.SIGTERM, pass_on),
        signal.SIGHUP: signal.signal(signal.SIGHUP, pass_on),
    }
    try:
        words = [sys.executable, "-m", "sparta.launcher", *command]
        process = subprocess.Popen(words, preexec_fn=lambda: tether(signal.SIGTERM))
        started.append(process)
        for number in asked:  # while it was started
            process.send_signal(number)
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def newest_run() -> Path:
    """The run directory that the last training of the demo made."""
    return max(RUNS.glob("demo*"), key=lambda path: path.stat().st_ctime_ns)


def _next_steps(run: Path) -> str:
    return (
        f"\nThe run is in {run}. What to try next:\n"
        f"  sparta evaluate {run} --split valid\n"
        f"  sparta plan {run}/job.yaml --ranks 8 --device cuda --memory-gb 80\n"
        f"  sparta train {run}/job.yaml --set model.name=dcn_v2"
    )


def _short(path: Path) -> str:
    """A path as the user would type it: relative where it lies below here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
