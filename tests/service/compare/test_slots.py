"""Processes of a study and Ctrl-C; how they train cells is in test_end_to_end.py and test_worker.py."""

import os
import signal
import subprocess
import sys

import pytest

from sparta.service.compare.slots import _uninterrupted

CODE = "import sys, time; print('up', flush=True); sys.stdin.read(); print('done', flush=True)"


def test_processes_started_meanwhile_never_hear_ctrl_c_and_we_hear_it_after() -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        with _uninterrupted():
            pipe = subprocess.PIPE
            started.append(subprocess.Popen([sys.executable, "-c", CODE], stdin=pipe, stdout=pipe))
            started[0].send_signal(signal.SIGINT)  # while it loads
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        start()
    signal.signal(signal.SIGINT, before)
    with started[0] as process:
        assert process.stdout
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[0] == b"done\n"
        assert process.returncode == 0
