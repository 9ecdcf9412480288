"""The weights of a checkpoint in safetensors files, for whoever has neither the plan nor this package.

    <out>/model-00001-of-00027.safetensors ...   one file a table, the last one everything else
    <out>/model.safetensors.index.json           which tensor is in which file
    <out>/schema.json  job.yaml                  what the columns are, and the model

Tables are whole and unpadded, named `tables/<name>`; dense parameters and buffers `dense/<name>`. Memory is that
of the largest table and a block of rows. `sparta evaluate <out>` scores it.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparta.models.errors import ConfigError, DataError
from sparta.service.checkpoint.files import one_line, read, sizes
from sparta.service.checkpoint.find import INDEX
from sparta.service.checkpoint.manifest import check
from sparta.service.checkpoint.storage import Storage
from sparta.service.checkpoint.store import WAY_OUT
from sparta.service.run import RunDirectory, write_atomically
from sparta.sharding.pending import fill
from sparta.sharding.state import DENSE, TABLES, LogicalTable


def export(run: RunDirectory, storage: Storage, name: str, out: Path) -> int:
    """Write one checkpoint's weights to a new folder; their bytes. It appears whole or not at all.

    Raises:
        ConfigError: `out` is there already.
        DataError: the checkpoint is damaged; nothing was written then.
    """
    if out.exists():
        raise ConfigError(f"{out}: exists already; give another --out or remove it")
    check(storage, name, WAY_OUT)
    unreadable = storage.place(name), f"not readable; {WAY_OUT}"
    with one_line(*unreadable):
        held = {key: size for key, size in sizes(storage, name).items() if size is not None}
    draft = out.with_name(out.name + ".draft")
    shutil.rmtree(draft, ignore_errors=True)  # left by an interrupted export
    draft.mkdir(parents=True)
    try:
        groups = [[key] for key in sorted(held) if key.startswith(TABLES)]
        groups.append(sorted(key for key in held if key.startswith(DENSE)))
        files = [f"model-{n:05d}-of-{len(groups):05d}.safetensors" for n in range(1, len(groups) + 1)]
        total = 0
        for file, keys in zip(files, groups, strict=True):
            tensors: dict[str, Any] = {key: _empty(*held[key]) for key in keys}
            with one_line(*unreadable):
                fill(tensors, held, lambda wanted: read(wanted, storage, name, alone=True))
            _save(tensors, draft / file)
            total += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        where = {key: file for file, keys in zip(files, groups, strict=True) for key in keys}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        write_atomically(draft / INDEX, json.dumps(index, indent=1) + "\n")
        for path in (run.job, run.schema):
            shutil.copyfile(path, draft / path.name)
        draft.rename(out)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return total


def _empty(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a file that whoever may read new files here may read: safetensors makes it for its owner only."""
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(mode)


@torch.no_grad()
def load_export(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Fill this rank's part of the weights (`Sharded.state_dict`) from an exported folder.

    Raises:
        DataError: a file is not readable, or the weights are another model's.
    """
    try:
        where: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]
        for name in sorted(set(where) ^ set(state)):
            problem = "is not in the model" if name in where else "is missing"
            raise DataError(f"{folder}: {name} {problem}; the weights belong to another job.yaml")
        for name, target in state.items():
            with safe_open(folder / where[name], framework="pt") as file:
                saved = file.get_slice(name)
                if list(target.shape) != saved.get_shape():
                    raise DataError(
                        f"{folder}: {name} is {saved.get_shape()}, {list(target.shape)} in the model; the weights "
                        "belong to another job.yaml"
                    )
                if not isinstance(target, LogicalTable):
                    target.copy_(file.get_tensor(name))
                    continue
                for window in (*target.windows, *target.copies):
                    rows, columns = window.values.shape
                    window.values.copy_(
                        saved[window.row : window.row + rows, window.column : window.column + columns]
                    )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DataError(f"{folder}: not readable ({error}); export the run again") from error
