"""Trajectory files (tests/golden/README.md): what is in one, its model, and how far other numbers are from it."""

# T = steps, F = fields = tables, B = samples, R = rows, D = columns

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

DENSE = ("W1", "b1", "W2", "b2")


class TrajectoryError(ValueError):
    """A file that is not a trajectory."""


@dataclass(frozen=True)
class Trajectory:
    """One file; arrays as tensors by their key."""

    path: Path
    meta: dict[str, Any]
    arrays: dict[str, Tensor]

    @classmethod
    def read(cls, path: Path) -> "Trajectory":
        """Raises TrajectoryError, in one line, for whatever is not such a file."""
        try:
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
            meta = json.loads(str(arrays.pop("meta_json")))
            arrays.pop("forward_math", None)
            found = cls(path, meta, {key: torch.from_numpy(array) for key, array in arrays.items()})
            found._check()
        except OSError as error:
            raise TrajectoryError(f"{path}: {error.strerror or error}") from None
        except (KeyError, TypeError, ValueError, IndexError, EOFError, zipfile.BadZipFile) as error:
            what = f"no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
            raise TrajectoryError(
                f"{path}: not a trajectory file: {what}; see tests/golden/README.md"
            ) from None
        return found

    @property
    def authors(self) -> bool:
        """Whether the published class made it; else it is Algorithm 1."""
        return bool(self.meta["variant"] == "OFFICIAL")

    @property
    def hyper(self) -> dict[str, Any]:
        settings: dict[str, Any] = self.meta["hyper"]
        return settings

    @property
    def steps(self) -> int:
        return len(self.arrays["labels"])

    @property
    def tables(self) -> tuple[str, ...]:
        """Keys of the tables, one a field."""
        return tuple(f"table{j}" for j in range(self.arrays["kjt_lengths"].shape[1]))

    @property
    def parameters(self) -> tuple[str, ...]:
        return (*self.tables, *DENSE)

    def bags(self, step: int) -> list[tuple[Tensor, Tensor]]:
        """(ids, lengths (B,)) of each field."""
        lengths_FB = self.arrays["kjt_lengths"][step]
        begin, end = self.arrays["kjt_step_offsets"][step : step + 2].tolist()
        ids = torch.split(self.arrays["kjt_values"][begin:end], lengths_FB.sum(1).tolist())
        return list(zip(ids, lengths_FB, strict=True))

    def _check(self) -> None:
        if self.meta["variant"] not in ("PAPER", "OFFICIAL"):
            raise ValueError(f"variant {self.meta['variant']!r} is neither PAPER nor OFFICIAL")
        needed = ["lr_embed", "lr_net", "rho", "net_pert", "betas", "eps"]
        needed += ["bound", "weight_decay"] if self.authors else ["base", "xi", "count_mode"]
        for key in needed:
            if key not in self.hyper:
                raise ValueError(f"no hyper-parameter {key!r} in meta_json")
        if not self.authors and self.hyper["base"] not in BASES:
            raise ValueError(f"base {self.hyper['base']!r} is none of {', '.join(BASES)}")
        for key in ("kjt_values", "kjt_lengths", "kjt_step_offsets"):
            if self.arrays[key].dtype != torch.int64:
                raise ValueError(f"{key} holds {self.arrays[key].dtype}, not int64")
        if not self.authors and self.hyper["count_mode"] not in ("cumulative", "batch"):
            raise ValueError(f"count_mode {self.hyper['count_mode']!r} is neither cumulative nor batch")
        numbers = [float(self.hyper[key]) for key in needed if key not in ("base", "count_mode", "betas")]
        if not min(numbers) >= 0 or len([float(beta) for beta in self.hyper["betas"]]) != 2:
            raise ValueError("a hyper-parameter below 0, or not two betas")
        kinds = {self.arrays[key].dtype for key in ("labels", *self.parameters)}
        if len(kinds) > 1 or not all(kind.is_floating_point for kind in kinds):
            raise ValueError(
                f"labels and parameters hold {', '.join(map(str, kinds))}; one kind of float is needed"
            )
        T, F, B = self.arrays["kjt_lengths"].shape
        D = self.arrays["table0"].shape[2]
        hidden = self.arrays["W1"].shape[1]
        rows = [self.arrays[name].shape[1] for name in self.tables]
        values = len(self.arrays["kjt_values"])
        shapes = {
            "labels": (T, B),
            "kjt_step_offsets": (T + 1,),
            "W1": (T + 1, hidden, F * D),
            "b1": (T + 1, hidden),
            "W2": (T + 1, 1, hidden),
            "b2": (T + 1, 1),
            **{name: (T + 1, R, D) for name, R in zip(self.tables, rows, strict=True)},
        }
        for key, array in self.arrays.items():
            if not key.startswith("kjt_") and len(array) not in (T, T + 1):
                raise ValueError(f"{key} has {len(array)} entries for {T} steps")
        for key, shape in shapes.items():
            if tuple(self.arrays[key].shape) != shape:
                raise ValueError(f"{key} has shape {tuple(self.arrays[key].shape)}, not {shape}")
        ends = self.arrays["kjt_lengths"].sum((1, 2)).cumsum(0)
        if self.arrays["kjt_step_offsets"].tolist() != [0, *ends.tolist()] or values != int(ends[-1]):
            raise ValueError("kjt_step_offsets and kjt_lengths do not agree with the number of kjt_values")
        for step in range(T):
            for (ids, _), R in zip(self.bags(step), rows, strict=True):
                if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < R:
                    raise ValueError(f"step {step}: an id is outside its table of {R} rows")


BASES = {"sgd": "sgd", "lazy_adam": "adam", "rowwise_adagrad": "rowwise_adagrad"}
"""Base optimizers by their name in the files."""


class Model(nn.Module):
    """The model of every file, at its step 0, in the file's precision."""

    def __init__(self, trajectory: Trajectory) -> None:
        super().__init__()
        start = {name: trajectory.arrays[name][0].clone() for name in trajectory.parameters}
        for name in trajectory.tables:
            table = nn.EmbeddingBag.from_pretrained(start[name], freeze=False, mode="sum")
            self.add_module(name, table)
        for name in DENSE:
            self.register_parameter(name, nn.Parameter(start[name]))
        self._tables = trajectory.tables

    def forward(self, bags: list[tuple[Tensor, Tensor]]) -> Tensor:
        x = [
            self.get_submodule(name)(ids, lengths.cumsum(0) - lengths)
            for name, (ids, lengths) in zip(self._tables, bags, strict=True)
        ]
        h = (torch.cat(x, dim=1) @ self.W1.T + self.b1).relu()
        return (h @ self.W2.T + self.b2).squeeze(1)


def bce(logits: Tensor, labels: Tensor) -> Tensor:
    """The files' loss."""
    return (nn.functional.softplus(logits) - labels * logits).mean()


class Errors:
    """The largest absolute error of each array, and which steps of it were looked at."""

    def __init__(self, trajectory: Trajectory) -> None:
        self.largest: dict[str, float] = {}
        self._path = trajectory.path
        self._arrays = trajectory.arrays

    def see(self, index: int, values: Mapping[str, Tensor], rows: Tensor | None = None) -> None:
        """Compare values with the file's at an index (a step, for state 0 = initial); keys it lacks are left out.

        Args:
            rows: the rows that the values are of; all if not given.
        """
        for key, value in values.items():
            if key in self._arrays:
                array = self._arrays[key]
                expected = array[index] if rows is None else array[index][rows]
                if expected.shape != value.shape:
                    there, here = tuple(expected.shape), tuple(value.shape)
                    raise TrajectoryError(f"{self._path}: {key} at {index} has shape {there}, not {here}")
                difference = (value.detach().double() - expected.double()).abs()
                error = float(difference.max()) if difference.numel() else 0.0
                # A NaN must win over every number: a comparison with it is false.
                before = self.largest.get(key, 0.0)
                self.largest[key] = before if before != before or error <= before else error
