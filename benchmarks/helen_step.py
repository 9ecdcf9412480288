"""What a step costs: Helen and its cheaper settings against the plain step, and that against FBGEMM's.

The speed shape (benchmarks/shape.py), one process. All settings take turns on the same batches, so that whatever else
the machine does hits all alike; prints one JSON object: ratios within the run, median milliseconds, machine.

    python benchmarks/helen_step.py [--rounds 30] [--rows 1000000]
    python benchmarks/helen_step.py --device cuda --model dlrm --dim 128 --batch 65536 --rows 4000000
"""

import argparse
import json
import statistics
import sys
from dataclasses import asdict
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from measured import as_launched, circumstances, cores, ratio
from shape import MILLION, Shape
from turns import alone, batches, built, measure

from sparta.models.zoo import ZOO

SETTINGS: dict[str, dict[str, object]] = {
    # Whole steps, not kernels: on one rank engine rows takes a shorter way (sharding/rows/alone.py), fbgemm TorchRec's.
    "fbgemm rowwise_adagrad": {"name": "rowwise_adagrad", "engine": "fbgemm"},
    "rows rowwise_adagrad": {"name": "rowwise_adagrad"},
    "adam": {"name": "adam"},
    "helen": {"name": "helen"},
    "helen, ascend_every 2": {"name": "helen", "rho": 0.02, "every": 2},
    "helen, ascend_every 4": {"name": "helen", "rho": 0.02, "every": 4},
    "helen, ascend_fraction 1/4": {"name": "helen", "share": 4},
    "helen, ascend_precision bf16": {"name": "helen", "precision": "bf16"},
    "helen, bf16, ascend_every 2": {"name": "helen", "rho": 0.02, "precision": "bf16", "every": 2},
    "helen, perturb_dense": {"name": "helen", "dense": True},
    "sam": {"name": "sam"},
    "asam": {"name": "asam"},
}
ON_GPUS: dict[str, dict[str, object]] = {"fbgemm adam": {"name": "adam", "engine": "fbgemm"}}
"""FBGEMM has no Adam for CPUs."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--rows", type=int, default=MILLION)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model", choices=tuple(ZOO), default="deepfm")
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--threads", type=int, default=cores())
    options = parser.parse_args()
    shape = Shape(options.model, options.rows, options.dim, options.batch, options.device)
    gpu = options.device == "cuda"
    with alone(options.threads, options.device):
        given = batches(shape, 16)
        settings = SETTINGS | ON_GPUS if gpu else SETTINGS
        steps = {name: (built(setting, shape)[1], given) for name, setting in settings.items()}
        taken = measure(steps, options.rounds)
    theirs = taken["fbgemm rowwise_adagrad"]
    ratios = {
        **{f"{name} to adam": ratio(ms, taken["adam"]) for name, ms in taken.items() if name != "adam"},
        "rows rowwise_adagrad to fbgemm's": ratio(taken["rows rowwise_adagrad"], theirs),
    }
    if gpu:
        ratios |= {f"{name} to fbgemm adam": ratio(ms, taken["fbgemm adam"]) for name, ms in taken.items()}
    medians = {name: statistics.median(ms) for name, ms in taken.items()}
    report = {
        "ratios": ratios,
        "milliseconds": {name: round(ms, 1) for name, ms in medians.items()},
        "examples_per_second": {name: round(shape.batch * 1e3 / ms) for name, ms in medians.items()},
        **asdict(shape),
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "threads": options.threads,
        **circumstances(),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    as_launched()
    main()
