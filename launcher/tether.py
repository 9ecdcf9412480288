"""No process outlives the one that started it, not even when that one is killed with SIGKILL.

torchrun and TorchX put their children into sessions of their own, so a terminal that closes or a
parent that is killed leaves them running, with their ports and their memory. Linux can tell a child
(prctl PR_SET_PDEATHSIG, kept across exec); elsewhere the signals that the launcher handles are all.
"""

import ctypes
import os
import signal
import sys

PARENT = "SPARTA_PARENT_PID"
"""Environment variable: the process that a tethered child was started by."""

_PR_SET_PDEATHSIG = 1


def tether(death_signal: signal.Signals) -> None:
    """Have this process sent `death_signal` when its parent dies; call it first thing in the child."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(death_signal))
    # The parent may have died before the call: then nobody will ever send the signal.
    parent = os.environ.get(PARENT)
    if parent is not None and int(parent) != os.getppid():
        os.kill(os.getpid(), death_signal)
