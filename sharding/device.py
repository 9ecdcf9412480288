"""Which GPUs this installation can really train on."""

import torch


def unused() -> str:
    """Why FBGEMM uses no GPU although torch sees one, and the way out; empty if that is not so."""
    if not torch.cuda.is_available() or usable_gpus():
        return ""
    return (
        f"torch sees {torch.cuda.device_count()}, but FBGEMM's build for CPUs is installed; put its build for GPUs in "
        "its place (`make install VARIANT=cuda`)"
    )


def usable_gpus() -> int:
    """GPUs that torch sees, if FBGEMM's kernels for them are installed; else 0.

    A CUDA build of torch beside the CPU build of FBGEMM sees GPUs but cannot look a row up on them.
    """
    if not torch.cuda.is_available():
        return 0
    import fbgemm_gpu  # noqa: F401  (registers its operators)

    kernels = torch._C._dispatch_has_kernel_for_dispatch_key("fbgemm::permute_2D_sparse_data", "CUDA")
    return torch.cuda.device_count() if kernels else 0
