"""Row kernels: sum, perturb, restore and step the touched rows of embedding tables. Names load on first use."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from sparta.optim.rows.group import Kernels


def kernels_for(device: "torch.device") -> "Kernels":
    """The fast kernels of a kind of device; numba loads here.

    Raises:
        ValueError: a device that has none.
    """
    if device.type == "cpu":
        from sparta.optim.rows.cpu import CPU

        return CPU
    raise ValueError(f"device {device}: row kernels run on cpu; use engine fbgemm, or device cpu")
