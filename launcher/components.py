"""TorchX components: `torchx run -s SCHEDULER sparta.train --job JOB.yaml ...`; `sparta submit` does the same and more.

Without `--image` they run with this Python, in this folder (`local_cwd`, `slurm`). TorchX's linter wants a component
plain: types as the `typing` module spells them, one Google-style docstring, and no other function in the module.
"""
# ruff: noqa: UP006, UP035, UP045

from pathlib import Path
from typing import Dict, List, Optional

from torchx import specs


def train(
    *args: str,
    job: str,
    run_dir: Optional[str] = None,
    j: Optional[str] = None,
    h: Optional[str] = None,
    cpu: int = 0,
    gpu: int = 0,
    memMB: int = 0,
    image: Optional[str] = None,
    mounts: Optional[List[str]] = None,
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 0,
) -> specs.AppDef:
    """Train a job file on one or more machines, going on where the run directory holds a checkpoint.

    Args:
        args: after `--`, further arguments of `sparta train`, such as --set optim.tables.lr=0.002
        job: JOB.yaml; its text travels with the job
        run_dir: run directory, on storage that all machines reach (default runs/<name>, in a container /runs/<name>)
        j: [[min:]nodes x]ranks, such as 8, 2x8 or 1:2x8 (default: one machine, train.ranks of the job)
        h: named resource of each machine, such as sparta_gpu_8 (default: as many GPUs as ranks if train.device is cuda)
        cpu: cores of each machine, in place of what h has
        gpu: GPUs of each machine, in place of what h has
        memMB: memory of each machine in MB, in place of what h has
        image: container image; none for this Python in this folder
        mounts: as in type=volume,src=<claim>,dst=<path>[,readonly] or type=bind,src=<host path>,dst=<path>
        env: further environment variables, as in A=1,B=2
        max_retries: times that the scheduler starts all machines again
    """
    from sparta.launcher.app import Machines, for_torchx, training

    machines = Machines(j, h, cpu, gpu, memMB, image, mounts or (), env or {}, max_retries)
    with for_torchx():
        return training(Path(job), args, run_dir, machines)[0]


def evaluate(
    *args: str,
    run_dir: str,
    split: str = "test",
    j: str = "1x1",
    h: Optional[str] = None,
    cpu: int = 0,
    gpu: int = 0,
    memMB: int = 0,
    image: Optional[str] = None,
    mounts: Optional[List[str]] = None,
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 0,
) -> specs.AppDef:
    """Compute a trained run's metrics on a split, as JSON in the log of rank 0.

    Args:
        args: after `--`, further arguments of `sparta evaluate`, such as --checkpoint last
        run_dir: run directory of a training
        split: train, valid or test
        j: [[min:]nodes x]ranks, such as 8, 2x8 or 1:2x8
        h: named resource of each machine, such as sparta_gpu_8 (default: sparta_cpu)
        cpu: cores of each machine, in place of what h has
        gpu: GPUs of each machine, in place of what h has
        memMB: memory of each machine in MB, in place of what h has
        image: container image; none for this Python in this folder
        mounts: as in type=volume,src=<claim>,dst=<path>[,readonly] or type=bind,src=<host path>,dst=<path>
        env: further environment variables, as in A=1,B=2
        max_retries: times that the scheduler starts all machines again
    """
    from sparta.launcher.app import Machines, for_torchx, on_ranks

    machines = Machines(j, h, cpu, gpu, memMB, image, mounts or (), env or {}, max_retries)
    with for_torchx():
        return on_ranks(
            ["evaluate", run_dir, "--split", split, "--json", *args],
            name="sparta-evaluate",
            machines=machines,
        )


def prepare(
    *args: str,
    spec: str,
    out: str,
    h: Optional[str] = None,
    cpu: int = 0,
    gpu: int = 0,
    memMB: int = 0,
    image: Optional[str] = None,
    mounts: Optional[List[str]] = None,
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 0,
) -> specs.AppDef:
    """Turn raw files into a dataset folder, in one process.

    Args:
        args: after `--`, further arguments of `sparta prepare`, such as --set files=/data/raw/*.parquet
        spec: SPEC.yaml as the job sees it, or the name of a built-in one
        out: dataset folder to make
        h: named resource of the machine (default: sparta_cpu)
        cpu: cores of the machine, in place of what h has
        gpu: GPUs of the machine, in place of what h has
        memMB: memory of the machine in MB, in place of what h has
        image: container image; none for this Python in this folder
        mounts: as in type=volume,src=<claim>,dst=<path>[,readonly] or type=bind,src=<host path>,dst=<path>
        env: further environment variables, as in A=1,B=2
        max_retries: times that the scheduler starts the machine again
    """
    from sparta.launcher.app import Machines, alone, for_torchx

    machines = Machines(None, h, cpu, gpu, memMB, image, mounts or (), env or {}, max_retries)
    with for_torchx():
        return alone(["prepare", spec, "--out", out, *args], name="sparta-prepare", machines=machines)
