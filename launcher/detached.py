"""A local job in a session of its own, which outlives the shell that submitted it.

`python -m sparta.launcher.detached ID` does what `sparta VERB` does, and leaves the exit code in the job's record.
The one who submits it writes the record when the pid is known, and only then closes the job's standard input.
"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

from sparta.launcher.forward import Follower
from sparta.launcher.local import POLL_SECONDS, TERMINAL, Stop, columns
from sparta.launcher.records import Record, born, find, make_folder

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def start(record: Record, *, watched: bool = False) -> Record:
    """Start the job, with a progress bar if it is watched on a terminal; its record with the pid."""
    make_folder()
    environment = dict(os.environ)
    if watched and sys.stderr.isatty():
        environment[TERMINAL] = str(columns())
    with record.out.open("wb") as out, record.err.open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "sparta.launcher.detached", record.id],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=err,
            cwd=record.cwd,
            env=environment,
            start_new_session=True,
            # What it is sent before it listens waits until it does.
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS),
        )
    record = replace(record, pid=process.pid, born=born(process.pid))
    record.save()
    assert process.stdin is not None
    process.stdin.close()
    # Nobody waits for it but by its record; when we end, init inherits it.
    process.returncode = 0
    return record


def wait(record: Record) -> int:
    """Show what the job prints until it has ended; its exit code. Ctrl-C stops the job, a second one kills it."""
    followers = [Follower(record.out, 1, whole=True), Follower(record.err, 2, whole=True)]
    stop, sent = Stop(), 0
    with stop.listening():
        while True:
            # The state first: what was written before the end is shown after it.
            running = find(record.id).state() == "RUNNING"
            for follower in followers:
                follower.write(follower.read())
            if not running:
                return code_of(find(record.id))
            if stop.asked and sent == 0:
                sent = send(record, signal.SIGTERM)
            elif stop.insisted and sent == 1:
                sent += send(record, signal.SIGINT)  # what a user insists with
            time.sleep(POLL_SECONDS)


def send(record: Record, number: signal.Signals) -> int:
    """Send a signal to the job if it still runs; how many were sent."""
    if not record.alive():
        return 0
    try:
        os.killpg(record.pid, number)
    except ProcessLookupError:
        return 0
    return 1


def code_of(record: Record) -> int:
    """The exit code of a job that has ended; that of SIGKILL where it could not say."""
    return 128 + signal.SIGKILL if record.exit_code is None else record.exit_code


def main(name: str) -> int:
    """Run the job; the exit code."""
    from sparta.launcher.cli import main as sparta

    sys.stdin.read()
    record, code = find(name), 1
    try:
        # Until the ranks run nobody else listens; whoever does then puts this back.
        for number in SIGNALS:
            signal.signal(number, _leave)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        code = sparta([record.verb, *record.arguments], service=record.service)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # it is too late to stop
        replace(record, exit_code=code).save()
    return code


def _leave(number: int, frame: object) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
