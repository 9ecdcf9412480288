"""What ascends beside the tables: the parameters that are in none, all together under one norm."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from sparta.models.errors import ConfigError
from sparta.sharding.engines import TableOptimizer


def follow(
    optimizers: Collection[TableOptimizer],
    asked: bool,
    rho: float | None,
    eta: float | None,
) -> tuple[str | None, float, float]:
    """(rule, radius, ASAM's constant) of the dense parameters: those of the tables, if not given.

    SAM and ASAM have one norm over all that is trained, so there the dense parameters always ascend; beside
    Helen's tables they do if asked to.

    Raises:
        ConfigError: the tables say different things.
    """
    rules = sorted({one.rule for one in optimizers if one.rule in ("sam", "asam")})
    if not rules and asked:
        rules = ["helen"]
    if not rules:
        return None, 0.0, 0.0
    if len(rules) > 1:
        raise ConfigError(
            "tables learn by sam and by asam, and the dense parameters can follow one; take one for all tables"
        )
    like = [one for one in optimizers if one.rule == rules[0]]
    found = []
    for key, given, default in (("rho", rho, TableOptimizer.rho), ("eta", eta, TableOptimizer.eta)):
        of_tables = {getattr(one, key) for one in like} or {default}
        if given is None and len(of_tables) > 1:
            values = ", ".join(str(value) for value in sorted(of_tables))
            raise ConfigError(f"tables have {key} {values}: say with {key} what the dense parameters have")
        found.append(of_tables.pop() if given is None else given)
    return rules[0], found[0], found[1]


class DenseAscent:
    """Moves dense parameters uphill and back.

    Args:
        parameters: by name; ASAM leaves those called `bias` unscaled.
        rule: None for parameters that stay where they are.
        rho: radius.
        eta: ASAM's constant beside |w|.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], rule: str | None, *, rho: float, eta: float
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
        """Add rho g / norm (for ASAM rho T^2 g / norm); nothing where the norm is 0 or not finite."""
        stays = (norm == 0) | ~norm.isfinite()
        scale = self._rho / norm
        self._saved = [parameter.detach().clone() for parameter in self._parameters.values()]
        for name, parameter in self._parameters.items():
            moved = scale * self._scaled(name, parameter, 2)
            parameter.add_(moved.masked_fill_(stays, 0.0).to(parameter.dtype))

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
