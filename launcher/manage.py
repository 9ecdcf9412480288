"""`sparta status | logs | cancel | list`: jobs that were submitted, from any shell.

Handles of local jobs lead to their records, all others to TorchX.
"""

import argparse
import json
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from sparta.launcher.beats import read_beat
from sparta.launcher.forward import NOTES
from sparta.launcher.records import PREFIX, Record, find, newest_first
from sparta.launcher.run_directory import LOGS
from sparta.launcher.submit import LOCAL, SCHEDULERS, Parser

HELP = {
    "status": "Show how a job is: state, run directory, step, exit code.",
    "logs": "Show what the ranks of a job print, each line with its rank.",
    "cancel": "Tell a job to stop, and wait until it has; a training saves a last checkpoint.",
    "list": "List jobs, newest first.",
}
GOING_ON = 255
"""Exit code of `sparta status --exit-code` for a job that has none yet."""


def manage(verb: str, argv: Sequence[str]) -> int:
    """Run one of the verbs; its exit code.

    Raises:
        ConfigError: no such job, or a scheduler that cannot be reached.
    """
    arguments = parser(verb).parse_args(argv)
    match verb:
        case "status":
            return status(arguments.handle, exit_code=arguments.exit_code, as_json=arguments.json)
        case "logs":
            return logs(arguments.handle, follow=arguments.follow, rank=arguments.rank)
        case "cancel":
            return cancel(arguments.handle)
        case _:
            return show_list(arguments.scheduler, arguments.namespace)


def parser(verb: str) -> Parser:
    """What the verb takes."""
    top = Parser(prog=f"sparta {verb}", description=HELP[verb])
    if verb == "list":
        top.add_argument("-s", "--scheduler", choices=SCHEDULERS, default=LOCAL, help="default: %(default)s")
        top.add_argument("-n", "--namespace", help="of kubernetes and kueue; default: the kube config's")
        return top
    top.add_argument("handle", help="what `sparta submit` printed")
    if verb == "status":
        top.add_argument(
            "--exit-code", action="store_true", help=f"exit with the job's code, {GOING_ON} while it has none"
        )
        top.add_argument("--json", action="store_true", help="print JSON")
    if verb == "logs":
        top.add_argument("-f", "--follow", action="store_true", help="until the job has ended")
        top.add_argument("--rank", type=_rank, help="of one rank only")
    return top


def status(handle: str, *, exit_code: bool, as_json: bool) -> int:
    """Print what is known of a job; its exit code if asked, else 0."""
    if _is_local(handle):
        said = _of_record(find(handle))
        code = said["exit_code"]
    else:
        from sparta.launcher import cluster

        found = cluster.status(handle)
        said = {
            "handle": handle,
            "state": found.state.name,
            "said": found.msg.replace("<NONE>", ""),
        }
        code = {"SUCCEEDED": 0, "FAILED": 1, "CANCELLED": 1}.get(found.state.name)
    if as_json:
        print(json.dumps(said))
    else:
        for name, value in said.items():
            if value not in (None, ""):
                print(f"{name.replace('_', ' '):<10} {value}")
    if not exit_code:
        return 0
    return GOING_ON if code is None else int(code)


def logs(handle: str, *, follow: bool, rank: int | None) -> int:
    """Print the logs of all ranks, or of one."""
    if _is_local(handle):
        from sparta.launcher.ranklogs import show_logs

        show_logs(find(handle), follow=follow, rank=rank)
        if follow and (record := find(handle)).state() != "RUNNING":
            print(f"{record.handle} {record.state()} {_last_word(record) or ''}".rstrip(), file=sys.stderr)
    else:
        from sparta.launcher import cluster

        cluster.show_logs(handle, follow=follow, rank=rank)
    return 0


def cancel(handle: str) -> int:
    """Stop a job; how it ended is printed. A job that has ended already is left alone."""
    if not _is_local(handle):
        from sparta.launcher import cluster

        print(f"{handle} {cluster.cancel(handle)}")
        return 0
    from sparta.launcher.detached import send
    from sparta.launcher.local import POLL_SECONDS

    record = find(handle)
    if not send(record, signal.SIGTERM):
        print(f"{record.handle} {record.state()} already")
        return 0
    while record.state() == "RUNNING":
        time.sleep(POLL_SECONDS)
    print(f"{record.handle} {find(handle).state()}")
    return 0


def show_list(scheduler: str, namespace: str | None) -> int:
    """Print handle, state and, of a local job, when it was started and its run directory."""
    if scheduler == LOCAL:
        rows = [[r.handle, r.state(), _time(r.started), r.run] for r in newest_first()]
    else:
        from sparta.launcher import cluster

        rows = [list(job) for job in cluster.jobs(scheduler, namespace)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if not rows:
        print(f"no jobs on {scheduler}", file=sys.stderr)
    return 0


def _is_local(handle: str) -> bool:
    return handle.startswith(PREFIX) or "://" not in handle


def _of_record(record: Record) -> dict[str, str | int | None]:
    """What is known of a local job."""
    from sparta.launcher.detached import code_of

    state = record.state()
    record = find(record.id)
    logs = Path(record.run, LOGS, record.verb)
    beat = read_beat(logs, 0)
    return {
        "handle": record.handle,
        "state": state,
        "run": record.run,
        "step": beat.step if beat else None,
        "restarts": _restarts(logs) or None,
        "started": _time(record.started),
        "pid": record.pid if state == "RUNNING" else None,
        "exit_code": None if state == "RUNNING" else code_of(record),
        "said": None if state == "RUNNING" else _last_word(record),
    }


def _last_word(record: Record) -> str | None:
    """The line that says why a job failed, or where it stopped; for one that was killed we say it."""
    if record.exit_code is None:
        command = ["sparta", record.verb, *record.arguments]
        go_on = [] if "--resume" in command else ["--resume"]
        return f"killed with all its ranks, as by SIGKILL; go on with: {shlex.join([*command, *go_on])}"
    lines = record.err.read_text(errors="replace").splitlines() if record.err.exists() else []
    said = [line for line in lines if line.startswith(("error: ", "stopped after "))]
    return said[-1] if said else None


def _restarts(logs: Path) -> int:
    """How often the ranks were started again, in all starts of the run."""
    notes = logs / NOTES
    return len(notes.read_text(errors="replace").splitlines()) if notes.exists() else 0


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _rank(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no rank; they count from 0")
    return int(text)
