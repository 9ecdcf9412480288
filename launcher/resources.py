"""What a machine of a job may have: TorchX's named resources `sparta_gpu_1` to `sparta_gpu_8`, and `sparta_cpu`.

Cores and memory are a share of a machine with eight H100: 192 cores, 2 TiB. Whoever has other machines registers
names of their own (entry point group `torchx.named_resources`) or gives cpu, gpu and memory.
"""

from torchx.specs import Resource

GIB = 1024  # MiB
CORES_PER_GPU, MEMORY_PER_GPU = 20, 200 * GIB


def sparta_gpu_1() -> Resource:
    """One GPU, 20 cores, 200 GiB."""
    return _gpus(1)


def sparta_gpu_2() -> Resource:
    """2 GPUs, 40 cores, 400 GiB."""
    return _gpus(2)


def sparta_gpu_4() -> Resource:
    """4 GPUs, 80 cores, 800 GiB."""
    return _gpus(4)


def sparta_gpu_8() -> Resource:
    """8 GPUs, 160 cores, 1600 GiB."""
    return _gpus(8)


def sparta_cpu() -> Resource:
    """8 cores, 32 GiB."""
    return Resource(cpu=8, gpu=0, memMB=32 * GIB)


RESOURCES = {
    "sparta_gpu_1": sparta_gpu_1,
    "sparta_gpu_2": sparta_gpu_2,
    "sparta_gpu_4": sparta_gpu_4,
    "sparta_gpu_8": sparta_gpu_8,
    "sparta_cpu": sparta_cpu,
}


def _gpus(count: int) -> Resource:
    return Resource(cpu=CORES_PER_GPU * count, gpu=count, memMB=MEMORY_PER_GPU * count)
