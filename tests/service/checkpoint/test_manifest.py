"""What tells a checkpoint from anything else, to the last bit; and which of them stay."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparta.models.errors import DataError
from sparta.service.checkpoint import manifest as disk
from sparta.service.checkpoint.manifest import COMMIT, MANIFEST, Manifest
from sparta.service.checkpoint.storage import Storage

FILES = {"__0_0.distcp": b"\x00" * 40, "__1_0.distcp": b"abc", ".metadata": b"pickled"}


def described(files: Mapping[str, bytes]) -> dict[str, tuple[int, str]]:
    return {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()}


def write(
    storage: Storage, step: int, files: Mapping[str, bytes] = FILES, name: str = "", **training: Any
) -> str:
    """A checkpoint as a save leaves it; its name."""
    name = name or disk.name_of(step)
    storage.make(name)
    for file, data in files.items():
        with storage.writing(f"{name}/{file}") as out:
            out.write(data)
    text = Manifest(step, {"step": step, **training}, files=described(files)).to_json()
    storage.write(f"{name}/{MANIFEST}", text)
    disk.commit(storage, name, text)
    return name


contents = st.dictionaries(st.sampled_from("abcdef"), st.binary(max_size=50), min_size=1)


@settings(max_examples=40, deadline=None)
@given(contents)
def test_an_intact_checkpoint_has_no_damage_and_is_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]
) -> None:
    storage = Storage(tmp_path_factory.mktemp("intact"))
    name = write(storage, 7, files, best_step=3)
    found = disk.read_manifest(storage, name)
    assert (found.step, found.training["best_step"]) == (7, 3)
    assert found.files == described(files)
    assert found.bytes == sum(map(len, files.values()))
    assert disk.damage(storage, name, found) is None


@settings(max_examples=100, deadline=None)
@given(contents, st.data())
def test_a_flipped_bit_or_a_cut_of_any_file_is_found_and_the_file_named(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], data: st.DataObject
) -> None:
    storage = Storage(tmp_path_factory.mktemp("damaged"))
    name = write(storage, 7, files)
    before = disk.read_manifest(storage, name)
    victim = data.draw(st.sampled_from(sorted([*(f for f in files if files[f]), MANIFEST, COMMIT])), "file")
    path = Path(storage.place(name), victim)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans(), "cut"):
        # COMMIT and the manifest end in a line break that says nothing.
        del content[data.draw(st.integers(0, len(content) - (1 if victim in files else 2)), "size") :]
    else:
        content[data.draw(st.integers(0, len(content) - 1), "byte")] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    if victim in files:
        problem = disk.damage(storage, name, disk.read_manifest(storage, name))
        assert problem is not None
        assert problem.startswith(f"{victim} ")
        assert disk.damage(storage, name, before, [file for file in files if file != victim]) is None
        return
    told = refusal(storage, name)
    # White space and bits of COMMIT that nobody reads: what counts is as it was.
    assert told or (victim == COMMIT and disk.read_manifest(storage, name) == before)
    assert told.startswith(f"{storage.place(name)}: " if told else "")
    assert "\n" not in told


def refusal(storage: Storage, name: str) -> str:
    """Why the manifest is not taken; empty if it is."""
    try:
        disk.read_manifest(storage, name)
    except DataError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("file", [MANIFEST, COMMIT, "__0_0.distcp"])
def test_a_file_that_is_gone_is_named(tmp_path: Path, file: str) -> None:
    storage = Storage(tmp_path)
    name = write(storage, 7)
    manifest = disk.read_manifest(storage, name)
    storage.remove_file(f"{name}/{file}")
    if file in FILES:
        assert disk.damage(storage, name, manifest) == f"{file} is gone"
    else:
        with pytest.raises(DataError, match=f"step-000000007: {file} is missing or broken"):
            disk.read_manifest(storage, name)


@pytest.mark.parametrize(
    "found, words",
    [
        (1, "format 1 holds weights only, so training cannot go on from it; start a new run with --from"),
        (4, "checkpoint format 4, this sparta reads 3; use the sparta that wrote it"),
        ("two", "checkpoint format two, this sparta reads 3; use the sparta that wrote it"),
    ],
)
def test_other_formats_are_refused_with_the_way_out(tmp_path: Path, found: object, words: str) -> None:
    storage = Storage(tmp_path)
    name = write(storage, 7)
    storage.write(f"{name}/{COMMIT}", json.dumps({"format": found, "step": 7}))
    with pytest.raises(DataError, match=words) as error:
        disk.read_manifest(storage, name)
    assert str(error.value).startswith(f"{storage.place(name)}: ")
    if found == 1:
        assert disk.format_of(storage, name) == 1


@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=4), st.integers(0, 9).map(lambda n: (n, ""))),
    st.integers(1, 5),
)
def test_every_file_is_dealt_to_one_rank_and_no_rank_has_a_whole_file_too_many(
    files: dict[str, tuple[int, str]], ranks: int
) -> None:
    dealt = disk.shares(files, ranks)
    assert len(dealt) == ranks
    assert sorted(name for share in dealt for name in share) == sorted(files)
    loads = [sum(files[name][0] for name in share) for share in dealt]
    assert max(loads) - min(loads) <= max((size for size, _ in files.values()), default=0)
    assert dealt == disk.shares(dict(reversed(files.items())), ranks)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.none() | st.integers(0, 11), min_size=1, max_size=8), st.integers(1, 4), st.data())
def test_the_newest_stay_and_what_each_of_them_calls_the_best(
    tmp_path_factory: pytest.TempPathFactory, bests: list[int | None], newest: int, data: st.DataObject
) -> None:
    storage = Storage(tmp_path_factory.mktemp("kept"))
    steps = range(1, len(bests) + 1)
    for step, best in zip(steps, bests, strict=True):
        write(storage, step, {}, best_step=best)
    damaged = data.draw(st.sets(st.sampled_from(steps)), "damaged")
    for step in damaged:
        storage.remove_file(f"{disk.name_of(step)}/{MANIFEST}")
    last = list(steps)[-newest:]
    expected = {*last, *(bests[step - 1] for step in last if step not in damaged)} & set(steps)
    assert disk.kept(storage, newest) == {disk.name_of(step) for step in expected if step is not None}


def test_two_checkpoints_of_the_best_step_both_stay(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    for name in ("step-000000002", "step-000000002-2"):
        write(storage, 2, {}, name=name)
    write(storage, 20, {}, best_step=2)
    assert disk.kept(storage, 1) == {"step-000000002", "step-000000002-2", "step-000000020"}


def test_only_a_commit_makes_a_checkpoint(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    for step in (10, 9, 100):
        write(storage, step)
    for other in ("step-000000011", "damaged-step-000000012", "logs"):
        storage.make(other)
        storage.write(f"{other}/{MANIFEST}", "{}")
    assert disk.committed(storage) == [disk.name_of(step) for step in (9, 10, 100)]
    assert list(disk.torn(storage)) == ["step-000000011"]
