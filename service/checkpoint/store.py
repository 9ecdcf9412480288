"""The checkpoints of one run: saved beside the training, found again whatever happened meanwhile.

A save has phases: all ranks `copy` their state inside one step, then in the background write `data`; the
first rank writes `metadata`, `manifest` and `commit`, which makes it a checkpoint, and `retain`s what is to stay.
Killed anywhere before, the folder is nothing; the ones before it are untouched until after the commit.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch.distributed as dist
from torch import Tensor

from sparta.models.errors import DataError
from sparta.service.background import gpu_here, step_back
from sparta.service.checkpoint import manifest as disk
from sparta.service.checkpoint.copies import Copies, bytes_of
from sparta.service.checkpoint.files import OTHERS, one_line, read, sizes, write
from sparta.service.checkpoint.log import Listener, Log
from sparta.service.checkpoint.manifest import Manifest
from sparta.service.checkpoint.storage import Storage
from sparta.sharding.collectives import gather, rank, ranks
from sparta.sharding.pending import fill, is_pending
from sparta.sharding.state import check_names, check_shape

T = TypeVar("T")

WEIGHTS = ("tables/", "dense/")
RNG = "rng/"

WAY_OUT = "use another --checkpoint or train again"
"""Of a damaged checkpoint of a run."""

ASSUMED_BYTES_PER_SECOND = 100e6
"""Of the first save, until one has been measured."""


class Checkpoints:
    """Saves and loads; every method that says so is collective.

    Args:
        folder: path or URL that all ranks reach.
        keep: newest ones to keep, beside the best of each.
        background: write beside the steps that follow.
        began: told of each phase of a save.
        alive: called now and then while bytes are coming or going.
        waits: called now and then while this rank has written what is his and waits for the others.
        listener: told how each save ended.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        keep: int = 3,
        background: bool = True,
        began: Callable[[str], None] | None = None,
        alive: Callable[[], None] | None = None,
        listener: Listener | None = None,
        waits: Callable[[], None] | None = None,
    ) -> None:
        self.storage = Storage(os.fspath(folder))
        self.log = Log(listener)
        self._keep = keep
        self._background = background
        self._tell = began or (lambda phase: None)
        self._alive = alive or (lambda: None)
        self._waits = waits or (lambda: None)
        self._copies = Copies()
        self._group: dist.ProcessGroup | None = None
        self._thread: threading.Thread | None = None
        self._error: str | None = None
        self._broken: Exception | None = None
        self.saved: int | None = None
        """Step of the newest checkpoint that is known to be complete."""
        self._phase = ""
        self._settled: object = None  # of the last save, after which another of the same would be no other

    # --- saving ------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make what the ranks need to save, before they train: a rank that dies here is noticed. Collective."""
        if self._group is None and dist.is_initialized():
            # Collectives of its own, so that those of the steps never wait for a disk.
            self._group = dist.new_group(backend="gloo", timeout=timedelta(days=1))

    def save(self, state: Mapping[str, Any], manifest: Manifest) -> None:
        """Copy the state and write it; a save that is under way is waited for first. Collective."""
        asked = time.perf_counter()
        self.wait()
        if self._settled == _settled(manifest) is not None:
            return
        self.prepare()
        began = time.perf_counter()
        self._began("copy")
        copy = self._copies.take(state)
        stalled = time.perf_counter() - asked
        self._thread = threading.Thread(
            target=self._write, args=(copy, manifest, began, stalled, gpu_here()), name="sparta-checkpoint"
        )
        self._thread.start()
        if not self._background:
            self.wait()

    def wait(self) -> bool:
        """Until the save under way has ended; whether the last one succeeded. Same on every rank."""
        if self._thread is None:
            return self._error is None
        written = -1
        while self._thread.is_alive():
            self._thread.join(0.5)
            if (now := self.log.bytes_written) != written:
                written = now
                self._alive()
            elif self._phase == OTHERS:
                self._waits()
        self._thread = None
        if self._broken is not None:
            raise self._broken
        return self._error is None

    def finish(self) -> None:
        """Wait for the last save. Collective.

        Raises:
            DataError: it failed, so the run's last weights are nowhere.
        """
        written = self.wait()
        if self._group is not None and ranks() == 1:
            # Its threads would stay, and a study's slot has run after run. Several ranks end with their run; they
            # could not tell when the others have read all that was sent.
            dist.destroy_process_group(self._group)
            self._group = None
        if not written:
            since = "from the start" if self.saved is None else f"from step {self.saved}"
            raise DataError(
                f"{self.storage.root}: the last checkpoint could not be written ({self._error}); free space and go on "
                f"{since} with --resume"
            )

    def expected_seconds(self, state: Mapping[str, Any]) -> float:
        """How long a save would take, one that is under way included."""
        one = self.log.seconds or 1.0 + bytes_of(state) / ASSUMED_BYTES_PER_SECOND
        return one * (2 if self._thread and self._thread.is_alive() else 1)

    def _write(
        self, state: Mapping[str, Any], manifest: Manifest, began: float, stalled: float, gpu: int | None
    ) -> None:
        """Everything after the copy; in the thread. All ranks come to the same end."""
        step_back(gpu)
        name = None
        try:
            with one_line():
                name = self._first(lambda: self._fresh(manifest.step))
                files = write(
                    state, self.storage, name, group=self._group, began=self._began, wrote=self.log.wrote
                )
                shares: list[Any] = [files] * ranks()
                if ranks() > 1:
                    dist.all_gather_object(shares, files, group=self._group)
                manifest = replace(manifest, files={k: v for share in shares for k, v in share.items()})
                self._first(lambda: self._commit(name, manifest, time.perf_counter() - began, stalled))
            self._error, self.saved = None, manifest.step
            self._settled = _settled(manifest)
            self.log.saved(manifest, time.perf_counter() - began, stalled)
            if rank() == 0:
                self._began("retain")
                self._retain()
        except DataError as error:
            self._error = str(error)
            self.log.failed()
            if rank() == 0:
                with suppress(Exception):
                    if name:  # which is ours since it was made
                        self.storage.remove(name, disk.COMMIT)
                place = self.storage.place(disk.name_of(manifest.step))
                _note(f"{place}: not saved ({error}); free space, training goes on")
        except Exception as error:  # of a collective: another rank is gone, which is for the training to say
            self._broken = error
        self._began("")

    def _began(self, phase: str) -> None:
        self._phase = phase
        self._tell(phase)

    def _commit(self, name: str, manifest: Manifest, seconds: float, stalled: float) -> None:
        self._began("manifest")
        about = {
            **manifest.about,
            "seconds": round(seconds, 3),
            "stall_seconds": round(stalled, 4),
            "so_far": self.log.with_one_more(stalled),
        }
        text = replace(manifest, about=about).to_json()
        self.storage.write(f"{name}/{disk.MANIFEST}", text)
        self.storage.sync(name)
        self._began("commit")
        disk.commit(self.storage, name, text)

    def _fresh(self, step: int) -> str:
        """Make an empty folder; what is committed is never written over, what a killed save left is."""
        numbers = [number for at, number in map(disk.place_of, disk.committed(self.storage)) if at == step]
        name = disk.name_of(step, max(numbers, default=0) + 1)
        self.storage.remove(name, disk.COMMIT)
        self.storage.make(name)
        return name

    def _first(self, work: Callable[[], T]) -> T:
        """Do it on the first rank; its result, or its error, on every rank."""
        answer: list[T | DataError | None] = [None]
        if rank() == 0:
            try:
                answer[0] = work()
            except DataError as error:
                answer[0] = error
            except Exception as error:  # whatever a storage's package raises; nobody must be left waiting
                answer[0] = DataError(getattr(error, "strerror", None) or str(error) or type(error).__name__)
        if ranks() > 1:
            dist.broadcast_object_list(answer, group=self._group)
        if isinstance(answer[0], DataError):
            raise answer[0]
        return cast(T, answer[0])

    def _retain(self) -> None:
        """Drop what need not be kept."""
        try:
            stays = disk.kept(self.storage, self._keep)
            for name in disk.committed(self.storage):
                if name not in stays:
                    self.storage.remove(name, disk.COMMIT)
        except Exception as error:  # what is on the disk is good, only too much
            _note(f"{self.storage.root}: old checkpoints could not be removed ({error}); training goes on")

    # --- finding and loading -----------------------------------------------------------------------------

    def newest(self) -> tuple[str, Manifest] | None:
        """The newest complete checkpoint, every byte of it checked; damaged ones are named and set aside.

        Folders without COMMIT are removed. Collective.

        Raises:
            DataError: the newest has another format, or the storage does not answer: no reason to set it aside.
        """
        for name in reversed(self._first(self._tidied)):
            manifest, problem = self._checked(name)
            if manifest and not problem:
                self.saved = manifest.step
                self._settled = _settled(manifest)
                self.log.go_on(manifest)
                return name, manifest
            if rank() == 0:
                aside = f"{disk.DAMAGED}{name}"
                self.storage.remove(aside, disk.COMMIT)
                self.storage.rename(name, aside)
                _note(f"{self.storage.place(name)}: {problem}; set aside as {aside}")
        return None

    def _tidied(self) -> list[str]:
        """The checkpoints, oldest first, once what a killed save left is removed."""
        try:
            for name in list(disk.torn(self.storage)):
                _note(f"{self.storage.place(name)}: not complete, removed")
                self.storage.remove(name, disk.COMMIT)
            return disk.committed(self.storage)
        except OSError as error:
            raise DataError(
                f"{self.storage.root}: cannot be read ({error}); see to the storage and resume again"
            ) from error

    def _checked(self, name: str) -> tuple[Manifest | None, str | None]:
        """The manifest, and what is wrong with the checkpoint; each rank reads a share of the files."""
        try:
            manifest = self._first(lambda: disk.read_manifest(self.storage, name))
        except disk.DamageError as error:
            return None, error.problem
        found = gather(self._damage(name, manifest, disk.shares(manifest.files, ranks())[rank()]))
        for problem in found:
            if isinstance(problem, DataError):
                raise problem
        return manifest, next((problem for problem in found if isinstance(problem, str)), None)

    def _damage(self, name: str, manifest: Manifest, files: list[str]) -> str | DataError | None:
        """What is wrong with some files, or why nobody knows."""
        try:
            return disk.damage(self.storage, name, manifest, files, self._alive)
        except Exception as error:  # whatever a storage's package raises
            return DataError(
                f"{self.storage.place(name)}: cannot be read ({error}); see to the storage, or remove the checkpoint, "
                "and resume again"
            )

    def load(
        self,
        state: dict[str, Any],
        name: str,
        *,
        weights_only: bool = False,
        checked: bool = False,
        way_out: str = WAY_OUT,
    ) -> None:
        """Fill the tensors of a state from a checkpoint. Collective.

        Args:
            weights_only: leave out what the checkpoint holds beside the weights; what rows owed then is paid.
            checked: every byte has been compared with its checksum already.
            way_out: what to do if it is damaged.

        Raises:
            DataError: it is damaged, or of another model.
        """
        place = self.storage.place(name)
        if not checked and self._first(lambda: disk.format_of(self.storage, name)) != 1:
            _, problem = self._checked(name)
            if problem:
                raise DataError(f"{place}: {problem}; {way_out}")
        with one_line(place, f"not readable; {way_out}"):
            # torch would leave out what the model does not have.
            held = sizes(self.storage, name)
            there = {key for key in held if not weights_only or key.startswith(WEIGHTS)}
            apart = {key for key in (*state, *held) if key.startswith(RNG) or is_pending(key)}
            try:
                check_names(state.keys() - apart, there - apart)
                for key, target in state.items():
                    if isinstance(target, Tensor) and (size := held.get(key)):
                        check_shape(key, target.shape, size[0])
            except DataError as error:
                raise DataError(f"{place}: {error}") from error
            fill(state, held, lambda wanted: read(wanted, self.storage, name))


def _settled(manifest: Manifest) -> object:
    """What two saves have in common of which the second would add nothing; None if nothing is known."""
    training = manifest.training
    return (manifest.step, training.get("feed")) if training.get("settled") else None


def _note(text: str) -> None:
    with suppress(OSError):  # stderr may be a file on the disk that is full
        print(f"note: {text}", file=sys.stderr)
