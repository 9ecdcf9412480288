"""What a server process imports once, so that those it forks have it (see pool.py)."""

import torchrec  # noqa: F401

import sparta.optim.rows.cpu
import sparta.service.curves
import sparta.service.train
import sparta.service.world  # noqa: F401
