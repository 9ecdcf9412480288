"""The GPU's benchmark where there may be no GPU: it runs, and its step is the plain kernels'."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("arguments", [(), ("--dtype", "bfloat16", "--hot")])
def test_the_step_it_measures_is_the_plain_one(arguments: tuple[str, ...]) -> None:
    small = {"device": "cpu", "tables": 2, "rows": 50, "dim": 8, "batch": 64, "repeats": 1, "copied": 65536}
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu_kernels.py", *(f"--{k}={v}" for k, v in small.items()), *arguments],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["largest_difference_to_plain"] < 1e-5
    assert 0 < report["touched_rows"] <= 100
    assert report["milliseconds"].keys() == {"copy", "touch", "reduce", "perturb", "restore", "step"}
    measured = {name.split()[2] for name, one in report["ratios"].items() if one["pairs"] == 1}
    assert measured == {"reduce", "perturb", "restore", "step"}
