"""What the server imports once, so that the ranks it forks have it."""

import torchrec  # noqa: F401

import sparta.optim.rows.cpu
import sparta.service.curves
import sparta.service.train
import sparta.service.world  # noqa: F401
