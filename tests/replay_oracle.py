"""Replays a trajectory on the one-process `Helen`, through ascend, restore and step, and compares all on the way."""

from functools import partial

import torch
from torch import Tensor

from sparta.optim.helen import Helen
from tests.trajectory import BASES, DENSE, Errors, Model, Trajectory, bce


def make(file: Trajectory, model: Model) -> Helen:
    """The optimizer that made the file."""
    hyper = file.hyper
    betas, eps = tuple(hyper["betas"]), hyper["eps"]
    decay = hyper["weight_decay"] if file.authors else 0.0
    adam = partial(torch.optim.Adam, lr=hyper["lr_net"], betas=betas, eps=eps, weight_decay=decay)
    shared = {"lr": hyper["lr_embed"], "rho": hyper["rho"], "betas": betas, "eps": eps}
    shared["perturb_dense"] = bool(hyper["net_pert"])
    if file.authors:
        return Helen(model, variant="authors", xi=hyper["bound"], weight_decay=decay, dense=adam, **shared)
    sgd = partial(torch.optim.SGD, lr=hyper["lr_net"])
    return Helen(
        model,
        xi=hyper["xi"],
        frequency=hyper["count_mode"],
        base=BASES[hyper["base"]],
        dense=adam if hyper["base"] == "lazy_adam" else sgd,
        **shared,
    )


def errors(file: Trajectory, ranks: int = 1, plan: str | None = None) -> dict[str, float]:
    """The largest absolute error of every array that the file and the oracle have."""
    model = Model(file)
    helen = make(file, model)
    found = Errors(file)
    found.see(0, state(helen))
    parameters = dict(model.named_parameters())
    by_key = {key: parameters[f"{key}.weight" if key in file.tables else key] for key in file.parameters}
    for step in range(file.steps):
        before = {key: p.detach().clone() for key, p in by_key.items()}

        helen.zero_grad()
        loss1 = bce(model(file.bags(step)), file.arrays["labels"][step])
        loss1.backward()
        found.see(step, {"loss1": loss1, **gradients("g1", by_key)})
        helen.ascend()
        found.see(step, {f"eps_{key}": p - before[key] for key, p in by_key.items()})
        found.see(step, {f"pert_{key}": p for key, p in by_key.items()})  # the weights uphill, not how far
        see_tables(found, helen, step)
        if not file.authors:
            found.see(
                step, {"dense_norm": torch.cat([parameters[key].grad.flatten() for key in DENSE]).norm()}
            )

        helen.zero_grad()
        loss2 = bce(model(file.bags(step)), file.arrays["labels"][step])
        loss2.backward()
        found.see(step, {"loss2": loss2, **gradients("g2", by_key)})
        helen.restore()
        for key, p in by_key.items():
            assert torch.equal(p, before[key]), f"step {step}: {key} was not restored"
        helen.step()
        found.see(step + 1, state(helen))
        found.see(
            step, {f"N{j}": t.state["N"] for j, t in enumerate(helen.tables.values()) if "N" in t.state}
        )
    return found.largest


def gradients(prefix: str, parameters: dict[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    return {f"{prefix}_{key}": p.grad for key, p in parameters.items() if p.grad is not None}


def see_tables(found: Errors, helen: Helen, step: int) -> None:
    """Compare what Helen knows of each table between the passes."""
    for j, table in enumerate(helen.tables.values()):
        counts = torch.zeros(len(table.weight), dtype=torch.int64)
        counts[table.k] = table.c
        found.see(step, {f"batch_counts{j}": counts, f"counts{j}": counts})
        share_k = helen.share(table)
        of_touched = {
            f"rho_k{j}": helen.rho * share_k,
            f"freq_scale{j}": share_k,
            f"rownorm{j}": table.g.norm(dim=1),
        }
        found.see(step, of_touched, rows=table.k)


def state(helen: Helen) -> dict[str, Tensor]:
    """Weights and moments as they are, by the files' keys."""
    values: dict[str, Tensor] = {}
    names = {"exp_avg": "exp_avg_", "exp_avg_sq": "exp_avg_sq_", "sum": "acc_"}
    for table in helen.tables.values():
        values[table.name] = table.weight
        values |= {names[key] + table.name: x for key, x in table.state.items() if key in names}
    assert helen.dense is not None
    for name, p in helen.dense_parameters.items():
        values[name] = p
        values |= {names[key] + name: x for key, x in helen.dense.state[p].items() if key in names}
    return values
