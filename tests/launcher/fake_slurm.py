"""Stands in for Slurm's commands, by the name it is called by; runs what it is given, as one job with number 17.

Slurm itself needs daemons and a key that a test cannot have; the script that it is given is run for real.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

JOB = "17"
ROOT = Path(os.environ.get("FAKE_SLURM", "."))
"""Where it keeps what it knows of the job."""
PID, CODE = ROOT / "pid", ROOT / "code"


def sbatch(words: list[str]) -> None:
    """Run the script in the background; its number on standard output."""
    script = f"cd {os.getcwd()}; bash {ROOT}/script; echo $? > {CODE}.new; mv {CODE}.new {CODE}"
    # TorchX removes its own at once.
    (ROOT / "script").write_text(Path(words[-1]).read_text())
    process = subprocess.Popen(
        ["bash", "-c", script],
        env={**os.environ, "SLURM_JOB_ID": JOB},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    PID.write_text(str(process.pid))
    print(JOB)


def srun(words: list[str]) -> None:
    """Become the command, its output in files of its own; `--export` is split at commas."""
    options = {}
    while words[0].startswith("--"):
        name, _, value = words.pop(0).removeprefix("--").partition("=")
        options[name] = value
    for descriptor, name in ((1, "output"), (2, "error")):
        os.dup2(os.open(options[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    _, *exported = options["export"].split(",")
    os.environ.update(pair.split("=", 1) for pair in exported)
    os.execvp(words[0], words)


def state() -> str:
    """As sacct says it."""
    if not CODE.exists():
        return "RUNNING"
    return {0: "COMPLETED", 143: "CANCELLED"}.get(int(CODE.read_text()), "FAILED")


def sacct(words: list[str]) -> None:
    """One line of the job, or JSON of all."""
    if "--json" in words:
        print(
            json.dumps(
                {"jobs": [{"job_id": int(JOB), "state": {"current": state()}}] if PID.exists() else []}
            )
        )
        return
    print("JobID|JobName|Partition|State|ExitCode")
    if PID.exists() and JOB in words:
        print(f"{JOB}|ranks-0|debug|{state()}|0:0\n{JOB}.batch|batch||{state()}|0:0")


def scancel(words: list[str]) -> None:
    """Stop the job, as slurmd does: SIGTERM to all of its processes."""
    os.killpg(int(PID.read_text()), signal.SIGTERM)
    CODE.write_text("143")


if __name__ == "__main__":
    {"sbatch": sbatch, "srun": srun, "sacct": sacct, "scancel": scancel}[Path(sys.argv[0]).name](sys.argv[1:])
