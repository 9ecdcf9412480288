"""Threads that read and write beside the one that trains."""

import os
import sys
import threading
from contextlib import suppress

import torch

NICENESS = 10


def gpu_here() -> int | None:
    """The GPU of the thread that asks, to be handed to those that it starts; None if it uses none."""
    return torch.cuda.current_device() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]


def step_back(gpu: int | None) -> None:
    """Leave the cores to the threads that compute, and take their GPU.

    A loop over all cores ends with the one that was interrupted: beside a loader that did not give way a step took 6%
    longer on two cores. A thread that is given no GPU uses the first, on which every rank would open a context.
    """
    if sys.platform == "linux":  # where a thread has a priority of its own
        me = threading.get_native_id()
        with suppress(OSError):  # a sandbox may know no threads
            os.setpriority(os.PRIO_PROCESS, me, min(19, os.getpriority(os.PRIO_PROCESS, me) + NICENESS))
    if gpu is not None:
        torch.cuda.set_device(gpu)
