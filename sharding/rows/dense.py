"""What ascends beside the tables: the parameters that are in none, all together under one norm."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

Rule = Literal["helen", "sam", "asam"]


class DenseAscent:
    """Moves dense parameters uphill and back.

    Args:
        parameters: by name; ASAM leaves those called `bias` unscaled.
        rule: None for parameters that stay where they are.
        rho: radius.
        eta: ASAM's constant beside |w|.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], rule: Rule | None, *, rho: float, eta: float
    ) -> None:
        self.rule = rule
        self._parameters = parameters
        self._rho = rho
        self._eta = eta
        self._saved: list[Tensor] = []

    @torch.no_grad()
    def square(self) -> Tensor:
        """Squared norm of the gradient, for ASAM of T g; a float64 scalar."""
        scaled = [self._scaled(name, parameter, 1) for name, parameter in self._parameters.items()]
        norms = torch.stack(torch._foreach_norm(scaled)) if scaled else torch.zeros(1)
        return norms.double().square().sum()

    @torch.no_grad()
    def perturb(self, norm: Tensor) -> None:
        """Add rho g / norm (for ASAM rho T^2 g / norm); nothing where the norm is 0."""
        scale = torch.where(norm == 0, 0.0, self._rho / norm)
        self._saved = [parameter.detach().clone() for parameter in self._parameters.values()]
        for name, parameter in self._parameters.items():
            parameter.add_((scale * self._scaled(name, parameter, 2)).to(parameter.dtype))

    @torch.no_grad()
    def restore(self) -> None:
        """Put the parameters back, bit for bit."""
        for parameter, before in zip(self._parameters.values(), self._saved, strict=False):
            parameter.copy_(before)
        self._saved = []

    def _scaled(self, name: str, parameter: nn.Parameter, power: int) -> Tensor:
        gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        if self.rule != "asam" or name.rpartition(".")[2] == "bias":
            return gradient
        result: Tensor = gradient * (parameter.abs() + self._eta) ** power
        return result
