"""Row kernels: sum, perturb, restore and step the touched rows of embedding tables. Names load on first use."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from sparta.optim.rows.group import Kernels


def kernels_for(device: "torch.device") -> "Kernels":
    """The fast kernels of a kind of device; numba and Triton load here.

    Raises:
        ValueError: a device that has none.
    """
    if device.type == "cpu":
        from sparta.optim.rows.cpu import CPU

        return CPU
    if device.type == "cuda":
        from sparta.optim.rows.gpu import GPU

        return GPU
    raise ValueError(f"device {device}: row kernels run on cpu and cuda")
