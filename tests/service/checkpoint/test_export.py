"""An export is the run's weights, whole, and scores as the run does."""

import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from sparta.models.errors import ConfigError, DataError
from sparta.models.schema import load_schema
from sparta.service.checkpoint import export as module
from sparta.service.checkpoint import manifest as disk
from sparta.service.checkpoint.export import export, load_export
from sparta.service.checkpoint.find import INDEX, find, is_export
from sparta.service.checkpoint.storage import Storage
from sparta.service.checkpoint.store import Checkpoints
from sparta.service.run import RunDirectory
from tests.faults.harness import weights_of
from tests.pool import Pool
from tests.service.checkpoint.tables import PAD, pieces, values
from tests.service.test_train import run_evaluation


@pytest.fixture(scope="module")
def exported(learned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last weights of the run; do not change it."""
    out = tmp_path_factory.mktemp("exported") / "out"
    storage = Storage(learned / "checkpoints")
    size = export(RunDirectory(learned), storage, disk.committed(storage)[-1], out)
    assert size == json.loads((out / INDEX).read_text())["metadata"]["total_size"]
    return out


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Everything in the files, by the index."""
    where = json.loads((folder / INDEX).read_text())["weight_map"]
    found = {}
    for name, file in where.items():
        with safe_open(folder / file, framework="pt") as content:
            found[name] = content.get_tensor(name)
    return found


def test_it_is_the_weights_and_nothing_else(learned: Path, exported: Path) -> None:
    found, saved = tensors(exported), weights_of(learned)
    weights = {name for name in saved if name.startswith(("tables/", "dense/"))}
    assert weights < saved.keys()
    assert found.keys() == weights
    for name, tensor in found.items():
        assert torch.equal(tensor, saved[name]), name
    size = sum(tensor.numel() * tensor.element_size() for tensor in found.values())
    assert size == json.loads((exported / INDEX).read_text())["metadata"]["total_size"]


def test_a_table_has_a_file_of_its_own(exported: Path) -> None:
    where = json.loads((exported / INDEX).read_text())["weight_map"]
    files = {name: [other for other in where if where[other] == where[name]] for name in where}
    tables = [name for name in where if name.startswith("tables/")]
    assert len(tables) > 3
    assert all(files[name] == [name] for name in tables)
    assert sorted(where.values())[-1] == f"model-{len(tables) + 1:05d}-of-{len(tables) + 1:05d}.safetensors"
    listed = {*where.values(), INDEX, "schema.json", "job.yaml"}
    assert {path.name for path in exported.iterdir()} == listed
    assert load_schema(exported).sparse


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_every_file_may_be_read_by_whom_the_umask_allows(learned: Path, tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        export(RunDirectory(learned), Storage(learned / "checkpoints"), "step-000000048", tmp_path / "out")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()}
    assert modes == dict.fromkeys(modes, 0o666 & ~mask)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_it_scores_as_the_run_does(pool: Pool, learned: Path, exported: Path, ranks: int) -> None:
    for split in ("valid", "test"):
        ofs = [pool.run(ranks, run_evaluation, run, "last", split)[0] for run in (learned, exported)]
        assert ofs[0] == ofs[1]


def test_the_export_of_the_tested_weights_has_the_metrics_of_the_result(
    pool: Pool, learned: Path, tmp_path: Path
) -> None:
    checkpoints = Checkpoints(learned / "checkpoints")
    export(RunDirectory(learned), checkpoints.storage, find(checkpoints.storage, "best"), tmp_path / "out")
    result = json.loads((learned / "result.json").read_text())
    assert pool.run(2, run_evaluation, tmp_path / "out", None, "test")[0] == result["eval"]["test"]


def test_a_folder_that_is_taken_is_left_alone(learned: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(ConfigError, match="exists already; give another --out or remove it"):
        export(RunDirectory(learned), Storage(learned / "checkpoints"), "step-000000048", tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]


def test_it_is_there_whole_or_not_at_all(
    learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = module.save_file
    calls = []

    def full(*arguments: object, **options: object) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        plain(*arguments, **options)  # type: ignore[arg-type]

    storage = Storage(learned / "checkpoints")
    (tmp_path / "out.draft").mkdir()
    (tmp_path / "out.draft" / "old").write_text("of an export that was killed")
    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        export(RunDirectory(learned), storage, disk.committed(storage)[-1], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["rows", "columns", "last"])
def test_every_plan_takes_its_windows(exported: Path, kind: str) -> None:
    whole = tensors(exported)
    for rank in (0, 1):
        state = {
            name: pieces(torch.zeros(tensor.shape), kind, rank, 2)
            if name.startswith("tables/")
            else torch.zeros_like(tensor)
            for name, tensor in whole.items()
        }
        load_export(exported, state)
        for name, tensor in whole.items():
            if not name.startswith("tables/"):
                assert torch.equal(state[name], tensor)
                continue
            table = state[name]
            for found, expected in zip(values(table), values(pieces(tensor, kind, rank, 2)), strict=True):
                assert torch.equal(found, expected)
            for window in table.windows:  # the padding beside it is not ours
                beside = window.values.as_strided((1, PAD), (1, 1), window.values.shape[1])
                assert beside.isnan().all()


def test_another_model_is_refused_by_name(exported: Path, tmp_path: Path) -> None:
    whole = tensors(exported)
    name = next(iter(whole))
    for state, words in (
        (
            {**whole, "dense/new": torch.ones(1)},
            "dense/new is missing; the weights belong to another job.yaml",
        ),
        (
            {key: whole[key] for key in whole if key != name},
            f"{name} is not in the model; the weights belong",
        ),
        (
            {**whole, name: torch.ones(2, 2)},
            rf"{name} is \[.*\], \[2, 2\] in the model; the weights belong to",
        ),
    ):
        with pytest.raises(DataError, match=words):
            load_export(exported, state)
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    for file, content in (("model-00001-of-00007.safetensors", b"cut"), (INDEX, b"{"), (INDEX, b"[]")):
        (copy / file).write_bytes(content)
        with pytest.raises(DataError, match=f"{copy}: not readable .*; export the run again") as error:
            load_export(copy, whole)
        assert "\n" not in str(error.value)


def test_a_run_is_no_export(learned: Path, exported: Path) -> None:
    assert is_export(exported)
    assert not is_export(learned)
    assert not is_export(learned / "nowhere")
