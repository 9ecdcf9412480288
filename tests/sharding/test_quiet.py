"""The silence: nothing on stdout or stderr while tables are sharded and trained; without it, there is."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from sparta.sharding.quiet import silence
if "quiet" in sys.argv:
    silence()
import torch.distributed as dist
from tests.sharding.test_shard import sharded_toy, train
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
train(sharded_toy("table_row_wise", "sgd", 1), 0, 1, 2)
dist.destroy_process_group()
"""


@pytest.mark.parametrize("mode", ["quiet", "loud"])
def test_silence_is_complete_and_needed(mode: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "LOCAL_WORLD_SIZE"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode],
        capture_output=True,
        text=True,
        env={**environment, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        timeout=180,
        check=True,
    )
    assert (done.stdout + done.stderr == "") == (mode == "quiet"), done.stdout + done.stderr
