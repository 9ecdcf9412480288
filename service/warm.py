"""Starting from what another run has learned: its weights, or all of its learning state.

The new run begins at step 0 with its own data, schedule and early stopping. Rows that a grown vocabulary added
stay as a new table has them; all others, and what the optimizers know of them, are taken over.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from sparta.models.errors import ConfigError, DataError
from sparta.models.schema import Schema, load_schema
from sparta.service.checkpoint import manifest as disk
from sparta.service.checkpoint.export import load_export
from sparta.service.checkpoint.files import sizes
from sparta.service.checkpoint.find import find, is_export
from sparta.service.checkpoint.storage import Storage
from sparta.service.checkpoint.store import WEIGHTS, Checkpoints
from sparta.service.run import RunDirectory
from sparta.service.step import Step
from sparta.service.world import World
from sparta.sharding.shard import Sharded
from sparta.sharding.state import LogicalTable


def start_from(
    source: str, schema: Schema, sharded: Sharded, step: Step, world: World, *, weights_only: bool
) -> None:
    """Take over the weights of a run, a checkpoint or an export, and the learning state if there is one. Collective.

    Args:
        source: a run directory, one of its checkpoints (path or URL), or a folder of `sparta checkpoint export`.
        schema: of the new run's dataset.
        weights_only: let the optimizers begin anew.

    Raises:
        ConfigError: `source` is none of these.
        DataError: it is damaged, of another model, or its ids mean something else.
    """
    if is_export(Path(source)):
        if not weights_only:
            raise ConfigError(f"--from {source}: an export holds weights only; say --weights-only")
        world.once(lambda: check_ids(source, load_schema(Path(source)), schema))
        load_export(Path(source), sharded.state_dict())
        return
    storage, name = world.once(lambda: locate(source))
    world.once(lambda: check_ids(source, schema_of(storage, name), schema))
    state: dict[str, Any] = dict(sharded.state_dict())
    if not weights_only:
        state.update(step.state_dict())
    heads = world.once(lambda: smaller(storage, name, state))
    read = {key: value.head(heads[key]) if key in heads else value for key, value in state.items()}
    # In place, so into `state` too.
    Checkpoints(storage.root).load(
        read, name, weights_only=weights_only, way_out="give --from another checkpoint"
    )
    if not weights_only:
        step.load_state_dict({key: value for key, value in state.items() if not key.startswith(WEIGHTS)})


def locate(source: str) -> tuple[Storage, str]:
    """The storage and the name of a run's checkpoint, the best if it stopped early, or of the one that is named.

    Raises:
        ConfigError: neither a run nor a checkpoint.
    """
    run = RunDirectory(Path(source))
    if "://" not in source and run.job.is_file():
        job = run.read_job()
        storage = Storage(job.checkpoint.path or run.checkpoints)
        return storage, find(storage, run.tested(job))
    above, name = os.path.split(source.rstrip("/"))
    if name.startswith(disk.PREFIX):
        return Storage(above), name
    raise ConfigError(
        f"--from {source}: no run directory, no checkpoint (step-...) and no export; give one of these"
    )


def schema_of(storage: Storage, name: str) -> Schema:
    """What the ids of a checkpoint mean.

    Raises:
        DataError: it does not say.
    """
    if disk.format_of(storage, name) == 1:
        return load_schema(Path(storage.root).parent)
    try:
        return Schema.model_validate(disk.read_manifest(storage, name).schema)
    except ValidationError as error:
        raise DataError(
            f"{storage.place(name)}: does not say what its ids mean; take another checkpoint"
        ) from error


def check_ids(source: str, trained: Schema, schema: Schema) -> None:
    """Refuse a dataset in which an id of the training means something else.

    Raises:
        DataError: in one line, with the way out.
    """
    if trained.fingerprint not in (schema.fingerprint, *schema.ancestors):
        raise DataError(
            f"--from {source}: ids of the dataset do not mean what they meant in that training; prepare it with "
            "`sparta prepare SPEC --extend DATASET`, the dataset of that training"
        )


def smaller(storage: Storage, name: str, state: Mapping[str, Tensor]) -> dict[str, int]:
    """Rows of those tables that have fewer in the checkpoint than here."""
    return {
        key: size[0][0]
        for key, size in sizes(storage, name).items()
        if size is not None
        and isinstance(target := state.get(key), LogicalTable)
        and size[0][1:] == target.shape[1:]
        and size[0][0] < target.shape[0]
    }
