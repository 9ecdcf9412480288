"""What a torch optimizer knows of dense parameters, by their names.

    dense_optim/<parameter>/<kind>    as torch keeps it: exp_avg, exp_avg_sq, step, sum, momentum_buffer, ...
    dense_optim/<parameter>/begun     bool scalar: whether the optimizer has stepped the parameter yet

torch makes a parameter's state in its first step, and that step may differ from others (SGD's first momentum is
the gradient itself), so the state before it is none, not zeros. A state has the same names and shapes all the
same: a twin of the optimizer steps once and shows them. Learning rates are no state; the schedule sets them.
"""

import copy
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from sparta.models.errors import ConfigError
from sparta.sharding.state import State, check_all

DENSE_OPTIM = "dense_optim/"
BEGUN = "begun"


Zeros = Callable[[], Tensor]


class DenseState:
    """The state of one optimizer.

    Args:
        parameters: all it steps, by name.

    Raises:
        ConfigError: it keeps something else than tensors.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> None:
        self._optimizer = optimizer
        self._parameters = dict(parameters)
        self._blanks = _blanks(optimizer, self._parameters)

    def state_dict(self) -> State:
        """The state under its names; shares memory with the optimizer's, where that has begun."""
        state: State = {}
        for name, parameter in self._parameters.items():
            live = self._optimizer.state.get(parameter, {})
            for kind, zeros in self._blanks[name].items():
                state[f"{DENSE_OPTIM}{name}/{kind}"] = live[kind] if live else zeros()
            state[f"{DENSE_OPTIM}{name}/{BEGUN}"] = torch.tensor(bool(live))
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take such a state.

        Raises:
            DataError: a key is missing or too many, or a shape differs.
        """
        mine = self.state_dict()
        check_all(mine, state)  # before anything is copied
        for name, parameter in self._parameters.items():
            if not state[f"{DENSE_OPTIM}{name}/{BEGUN}"]:
                self._optimizer.state.pop(parameter, None)
                continue
            # What is not live yet are zeros of our own, which the optimizer may have.
            kept = {kind: mine[f"{DENSE_OPTIM}{name}/{kind}"] for kind in self._blanks[name]}
            for kind, tensor in kept.items():
                tensor.copy_(state[f"{DENSE_OPTIM}{name}/{kind}"])
            self._optimizer.state[parameter] = kept


def _blanks(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, dict[str, Zeros]]:
    """By parameter and kind, zeros like what the optimizer will keep."""
    # Together, so that the copy of the optimizer has the copies of the parameters.
    twin, theirs = copy.deepcopy((optimizer, dict(parameters)))
    for parameter in theirs.values():
        parameter.grad = torch.zeros_like(parameter)
    twin.step()
    found: dict[str, dict[str, Zeros]] = {}
    for name, parameter in theirs.items():
        found[name] = {}
        for kind, kept in twin.state.get(parameter, {}).items():
            if isinstance(kept, Tensor):
                found[name][kind] = partial(torch.zeros, kept.shape, dtype=kept.dtype, device=kept.device)
            elif kept is not None:
                raise ConfigError(
                    f"dense optimizer {type(optimizer).__name__} keeps {kind} {kept!r}, which is no tensor and "
                    "cannot be saved; use another one"
                )
    return found
