"""The two passes of one step: the same random numbers in both, running averages from one of them.

    with Passes(model) as passes:
        with passes.first():
            loss = forward_backward()
        ascend()
        with passes.second():
            forward_backward()

Batch norm normalises each pass by that pass's own statistics; only its running averages keep to one pass.
Nothing here knows what an optimizer does between the passes.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import TracebackType

import torch
from torch import Tensor, nn


class Passes:
    """The two passes of a step of one module.

    Args:
        module: whose devices' generators (and the CPU's) are put back for the second pass, and whose running
            averages are kept from moving twice.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        tensors = [*module.parameters(), *module.buffers()]
        self._devices = {x.device for x in tensors if x.is_cuda}

    def __enter__(self) -> "Passes":
        self._cpu = torch.get_rng_state()
        self._cuda = {device: torch.cuda.get_rng_state(device) for device in self._devices}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Generators stay where the last pass left them."""

    @contextmanager
    def first(self, *, averages: bool = True) -> Iterator[None]:
        """The pass at w; `averages` says whether running averages move."""
        with nullcontext() if averages else frozen_averages(self._module):
            yield

    @contextmanager
    def second(self, *, averages: bool = False) -> Iterator[None]:
        """The pass at w + epsilon, with the random numbers of the first; or the only one of a plain step."""
        torch.set_rng_state(self._cpu)
        for device, state in self._cuda.items():
            torch.cuda.set_rng_state(state, device)
        with nullcontext() if averages else frozen_averages(self._module):
            yield


@contextmanager
def frozen_averages(module: nn.Module) -> Iterator[None]:
    """Let forward passes leave the buffers of every batch-norm-like module as they were.

    Batch-norm-like is what has a `running_mean`. Its buffers are saved and put back rather than its momentum
    set to 0: a momentum of None means something else, `num_batches_tracked` advances whatever the momentum,
    0 times infinity is not 0, and compiled modules are compiled anew when an attribute changes.
    """
    kept: list[tuple[Tensor, Tensor]] = []
    for child in module.modules():
        if isinstance(getattr(child, "running_mean", None), Tensor):
            kept += [(buffer, buffer.clone()) for buffer in child.buffers(recurse=False)]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in kept:
                buffer.copy_(before)
