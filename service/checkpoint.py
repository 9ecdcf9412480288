"""Weights on disk, in a form that any plan and any number of ranks can read.

    checkpoints/step-000001000/{*.distcp, .metadata, COMMIT}      checkpoints/best

torch.distributed.checkpoint writes one logical, unpadded tensor per table (`tables/<name>`) and per dense
parameter or buffer (`dense/<name>`). COMMIT is written last: without it a directory is not a checkpoint.
`best` holds the name of the best one. Only the newest and the best are kept.
"""

import json
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from sparta.models.errors import DataError
from sparta.service.run import write_atomically
from sparta.sharding.collectives import from_first
from sparta.sharding.shard import Sharded

FORMAT = 1


class Checkpoints:
    """The checkpoints of one run; every method but `find` is collective.

    Args:
        folder: `checkpoints/` of the run directory, shared by all ranks.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, sharded: Sharded, step: int, *, best: bool) -> None:
        """Write the weights after `step`; then drop what is neither the newest nor the best."""
        place = self._folder / f"step-{step:09d}"
        # The first rank looks: another machine may see the files of a shared disk later.
        if not from_first((place / "COMMIT").exists()):
            with _one_line(place, "not written; free space or take another --run-dir, and train again"):
                save(sharded.state_dict(), checkpoint_id=str(place))
        dist.barrier()  # all have written before COMMIT appears
        if dist.get_rank() == 0:
            write_atomically(place / "COMMIT", json.dumps({"format": FORMAT, "step": step}) + "\n")
            if best:
                write_atomically(self._folder / "best", place.name + "\n")
            self._drop_all_but({place, self.find("best")})
        dist.barrier()

    def load(self, sharded: Sharded, which: Literal["best", "last"]) -> int:
        """Fill the weights from a checkpoint; the step it was taken after.

        Raises:
            DataError: there is none, it is damaged, or it is of another model.
        """
        place = from_first(self.find(which) if dist.get_rank() == 0 else None)
        assert place is not None
        state = sharded.state_dict()
        with _one_line(place, "not readable; use another --checkpoint or train again"):
            # torch would leave out what the model does not have.
            held = set(FileSystemReader(place).read_metadata().state_dict_metadata)
            if held != set(state):
                name = min(held ^ set(state))
                problem = "is not in the model" if name in held else "is missing"
                raise DataError(f"{place}: {name} {problem}; the checkpoint belongs to another job.yaml")
            load(state, checkpoint_id=str(place))  # into the live weights, which the state shares
        return int(json.loads((place / "COMMIT").read_text())["step"])

    def find(self, which: Literal["best", "last"]) -> Path:
        """The best checkpoint (the newest, when none was called best), or the newest.

        Raises:
            DataError: there is none, or it has another format.
        """
        marker = self._folder / "best"
        if which == "best" and marker.is_file():
            place = self._folder / marker.read_text().strip()
        else:
            complete = sorted(path.parent for path in self._folder.glob("step-*/COMMIT"))
            if not complete:
                raise DataError(
                    f"{self._folder}: holds no complete checkpoint; train first with `sparta train`"
                )
            place = complete[-1]
        try:
            commit = json.loads((place / "COMMIT").read_text())
            found, _ = commit["format"], int(commit["step"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{place}: COMMIT is missing or broken, so the checkpoint is not complete"
            ) from error
        if found != FORMAT:
            raise DataError(f"{place}: checkpoint format {found}, this sparta reads {FORMAT}")
        return place

    def _drop_all_but(self, keep: set[Path]) -> None:
        for path in self._folder.glob("step-*"):
            if path not in keep:
                (path / "COMMIT").unlink(missing_ok=True)
                shutil.rmtree(path)


@contextmanager
def _one_line(place: Path, way_out: str) -> Iterator[None]:
    """Turn what torch raises about a checkpoint into one line; every rank gets it."""
    try:
        yield
    except (CheckpointException, OSError, pickle.UnpicklingError, EOFError) as error:
        reasons = (
            [failure for failure, _ in error.failures.values()]
            if isinstance(error, CheckpointException)
            else [error]
        )
        words = str(reasons[0]).strip().splitlines() or [type(reasons[0]).__name__]
        raise DataError(f"{place}: {way_out} ({words[0]})") from error
