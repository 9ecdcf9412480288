"""Cells: the edits that make a job, the fingerprint that tells two apart, what is noted of a run, what is chosen."""

from pathlib import Path
from typing import Any

import pytest

from sparta.models.errors import ConfigError, DataError
from sparta.models.schema import load_schema
from sparta.service.compare.cells import Folder, choose, final, tuning
from sparta.service.compare.run import finals, grids
from tests.service.compare import toys


def test_later_edits_win_and_a_mapping_replaces_what_came_before_but_not_after(tmp_path: Path) -> None:
    folder = toys.folder(
        tmp_path,
        set={"model.args.hidden": [1], "train.epochs": 2, "model.embedding_dim": 4},
        data={
            "toy": {
                "job": "job.yaml",
                "set": {"train.epochs": 3, "optim.tables.lr": 7},
                "models": {"dcn": {"model.args.hidden": [3], "model.embedding_dim": 12}},
            }
        },
        models={
            "deepfm": {"set": {"model.args": {"dropout": 0.5}}},
            "dcn": {"set": {"model.name": "dcn", "model.args": {"layers": 2}, "model.embedding_dim": 8}},
        },
    )
    deepfm, dcn = (
        folder.job(final(folder.study, "toy", model, "helen", (("lr", 0.3), ("rho", 0.1)))[1])
        for model in ("deepfm", "dcn")
    )
    assert (deepfm.model.args, deepfm.model.embedding_dim) == ({"dropout": 0.5}, 4)
    assert (dcn.model.args, dcn.model.embedding_dim) == ({"layers": 2, "hidden": [3]}, 12)
    assert (dcn.train.epochs, dcn.train.seed, dcn.train.test) == (3, 2, "kept")
    assert (dcn.optim.tables.lr, dcn.optim.dense.lr, dcn.optim.tables.rho) == (0.3, 0.3, 0.1)


def test_budgets_are_equal_no_seed_is_tuned_on_and_no_tuning_reads_the_test_split(tmp_path: Path) -> None:
    study = toys.folder(tmp_path).study
    grid = [tuning(study, "toy", model, name) for model in study.models for name in study.optimizers]
    assert {len(cells) for cells in grid} == {2}
    for cell in (cell for cells in grid for cell in cells):
        assert cell.seed not in study.seeds
        assert cell.model == "deepfm"
        assert dict(cell.settings)["train.test"] == "unread"


def test_one_model_s_grids_serve_all_or_each_has_its_own(tmp_path: Path) -> None:
    one = toys.folder(tmp_path)
    each = toys.folder(tmp_path, tuning={"seed": 9})
    assert (len(grids(one, toys.whole(one))), len(grids(each, toys.whole(each)))) == (4, 8)


CHANGES: list[dict[str, Any]] = [
    {"set": {"model.embedding_dim": 8}},
    {"models": {**toys.STUDY["models"], "deepfm": {"set": {"model.args.dropout": 0.1}}}},
    {"data": {"toy": {"job": "job.yaml", "set": {"train.epochs": 2}}}},
    {"data": {"toy": {"job": "job.yaml", "models": {"deepfm": {"train.epochs": 2}}}}},
    {"data": {"toy": {"job": "job.yaml", "label": "click"}}},
    {"knobs": {"lr": ["optim.tables.lr"], "rho": ["optim.tables.rho"]}},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_cell_is_another_when_anything_in_its_job_is(change: dict[str, Any], tmp_path: Path) -> None:
    folder, other = toys.folder(tmp_path), toys.folder(tmp_path, **change)
    keys = [of.key(tuning(of.study, "toy", "deepfm", "helen")[0]) for of in (folder, other)]
    assert keys[0] != keys[1]
    assert keys[0].rpartition("-")[0] == keys[1].rpartition("-")[0]


def test_a_cell_is_another_on_other_data_and_in_another_job_file_but_not_by_a_name(tmp_path: Path) -> None:
    def key() -> str:
        folder = toys.folder(tmp_path)
        return folder.key(tuning(folder.study, "toy", "deepfm", "helen")[0])

    first = key()
    job = tmp_path / "job.yaml"
    assert (
        toys.folder(tmp_path, name="other", seeds=[3, 4]).key(
            tuning(toys.folder(tmp_path).study, "toy", "deepfm", "helen")[0]
        )
        == first
    )
    folder = toys.folder(tmp_path)
    job.write_text(job.read_text().replace("batch_size: 32", "batch_size: 64"))
    assert folder.key(tuning(folder.study, "toy", "deepfm", "helen")[0]) != first
    folder = toys.folder(tmp_path)
    schema = load_schema(tmp_path / "data")
    schema.model_copy(update={"fingerprint": "g"}).save(tmp_path / "data")
    assert folder.key(tuning(folder.study, "toy", "deepfm", "helen")[0]) != first
    assert key() == first


def test_a_cell_of_another_fold_is_another_though_the_datasets_read_alike(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("labels: click")
    keys = set()
    for fold in (1, 2):
        data = {"toy": {"job": "job.yaml", "prepare": "spec.yaml", "fold": fold}}
        folder = toys.folder(tmp_path, data=data)
        folder.dataset("toy").mkdir(parents=True)
        load_schema(tmp_path / "data").save(folder.dataset("toy"))
        keys.add(folder.key(tuning(folder.study, "toy", "deepfm", "helen")[0]))
    assert len(keys) == 2


def test_cells_whose_names_read_alike_are_two(tmp_path: Path) -> None:
    data = {name: {"job": "job.yaml", "set": {"train.epochs": n}} for n, name in enumerate(("a", "a-b"), 1)}
    models = {name: {"set": {"model.name": "deepfm"}} for name in ("b-c", "c")}
    folder = toys.folder(tmp_path, data=data, models=models, tuning={"seed": 9})
    one, other = (
        final(folder.study, *names, "adam", (("lr", 0.1),))[0] for names in (("a", "b-c"), ("a-b", "c"))
    )
    assert one.name == other.name
    assert folder.key(one) != folder.key(other)
    cells = grids(folder, toys.whole(folder))
    assert len(cells) == 2 * 2 * len(folder.study.optimizers) * 2


def test_a_spec_that_says_something_else_makes_another_dataset(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("labels: click")
    data = {"toy": {"job": "job.yaml", "prepare": "spec.yaml"}}
    folder = toys.folder(tmp_path, data=data)
    cell = tuning(folder.study, "toy", "deepfm", "adam")[0]
    before = folder.dataset("toy")
    assert folder.job(cell).data.path == str(before)
    seen = {before}
    assert folder.record(cell) is None, "a dataset that is not there has no results"
    (tmp_path / "spec.yaml").write_text("# a note\nlabels:   click  # who clicked\n")
    assert folder.dataset("toy") == before
    (tmp_path / "spec.yaml").write_text("labels: buy")
    assert folder.dataset("toy") != before
    for columns in ("{a: {}, b: {}}", "{b: {}, a: {}}"):
        (tmp_path / "spec.yaml").write_text(f"sparse: {columns}")
        assert folder.dataset("toy") not in seen, "columns in another order are another dataset"
        seen.add(folder.dataset("toy"))
    (tmp_path / "spec.yaml").write_text("labels: [")
    with pytest.raises(ConfigError, match=r"data\.toy\.prepare .*not YAML"):
        folder.dataset("toy")
    (tmp_path / "spec.yaml").unlink()
    with pytest.raises(ConfigError, match=r"data\.toy\.prepare .*No such file"):
        folder.dataset("toy")


def test_the_command_repeats_the_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = toys.folder(tmp_path)
    command = folder.command(tuning(folder.study, "toy", "deepfm", "helen")[1])
    assert command == (
        "sparta train job.yaml --set model.name=deepfm --set optim.tables.name=helen --set optim.tables.lr=0.1 "
        "--set optim.dense.lr=0.1 --set optim.tables.rho=0.7 --set name=toy --set train.seed=9 --set train.test=unread"
    )


def test_a_cell_without_a_result_is_not_noted(tmp_path: Path) -> None:
    folder = toys.folder(tmp_path)
    cell = tuning(folder.study, "toy", "deepfm", "adam")[0]
    assert not folder.finished(cell)
    assert folder.note(cell) is None
    assert folder.record(cell) is None


def test_what_is_noted_is_the_run_s_result_and_its_weights_are_let_go(tmp_path: Path) -> None:
    folder = toys.folder(tmp_path)
    tune, test = (
        tuning(folder.study, "toy", "deepfm", "adam")[0],
        final(folder.study, "toy", "dcn", "adam", ())[0],
    )
    for cell in (tune, test):
        toys.finish(folder, cell, 1.0)
        (folder.run(cell) / "checkpoints").mkdir()
        record = folder.note(cell, 12.34)
        assert record == folder.record(cell)
        assert record is not None
        assert (record["seconds"], record["steps"], record["seed"]) == (12.3, 7, cell.seed)
        assert ("test" in record) == cell.final
        assert not (folder.run(cell) / "checkpoints").exists()


def test_a_cell_that_diverged_is_noted_as_such(tmp_path: Path) -> None:
    folder = toys.folder(tmp_path)
    cell = final(folder.study, "toy", "dcn", "adam", ())[0]
    toys.finish(folder, cell, None)
    record = folder.note(cell)
    assert record is not None
    assert (record["valid"], record["error"]) == (None, "step 3: the loss is not finite; lower the rate")


def test_one_of_several_labels_is_named(tmp_path: Path) -> None:
    for label, complaint in (
        (None, "label None: the dataset has click, buy; name one"),
        ("by", "label by"),
        ("buy", ""),
    ):
        folder = toys.folder(tmp_path, data={"toy": {"job": "job.yaml", "label": label}})
        schema = load_schema(tmp_path / "data")
        schema.model_copy(update={"labels": ("click", "buy")}).save(tmp_path / "data")
        cell = tuning(folder.study, "toy", "deepfm", "adam")[0]
        if complaint:
            with pytest.raises(ConfigError, match=complaint):
                folder.label(cell)
        else:
            assert folder.label(cell) == "buy"


def test_validation_alone_chooses_and_what_diverged_is_not_chosen() -> None:
    def tuned(valid: float | None, test: float = 0.5) -> dict[str, Any]:
        return {"valid": None if valid is None else {"auc": valid}, "test": {"auc": test}}

    assert choose([tuned(0.7, test=0.9), tuned(None), tuned(0.8, test=0.6), tuned(0.8, test=0.95)]) == 2
    assert choose([tuned(None)]) is None


def test_nothing_is_chosen_before_the_grid_is_done(tmp_path: Path) -> None:
    folder = toys.folder(tmp_path)
    grid = tuning(folder.study, "toy", "dcn", "helen")
    for number, cell in enumerate(grid):
        assert folder.chosen("toy", "dcn", "helen")[0] is None
        assert finals(folder, toys.whole(folder)) == []
        toys.finish(folder, cell, 1.0 + number)
        folder.note(cell)
    assert folder.chosen("toy", "dcn", "helen")[0] == (("lr", 0.1), ("rho", 0.7))
    assert {cell.optimizer for cell in finals(folder, toys.whole(folder))} == {"helen"}


def test_a_dataset_that_is_not_there_and_a_cell_that_is_no_job_say_so(tmp_path: Path) -> None:
    folder = toys.folder(tmp_path, set={"train.epochs": 0})
    with pytest.raises(ConfigError, match=r"toy-deepfm-adam-lr0\.1-s9, with .*: train\.epochs"):
        folder.key(tuning(folder.study, "toy", "deepfm", "adam")[0])
    folder = toys.folder(tmp_path, set={"data.path": str(tmp_path / "nowhere")})
    with pytest.raises(DataError, match="nowhere: no such dataset"):
        folder.key(tuning(folder.study, "toy", "deepfm", "adam")[0])


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    study = toys.folder(tmp_path).study
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="give a writable --work"):
        Folder(tmp_path / "file" / "work", study).make()


def test_a_folder_of_another_study_is_left_alone(tmp_path: Path) -> None:
    folder = toys.folder(tmp_path)
    folder.result.write_text('{"name": "other"}')
    with pytest.raises(ConfigError, match="holds the study other, and this one is toy; give another --work"):
        toys.folder(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "[]", "{"])
def test_a_damaged_file_is_named_with_the_way_out(tmp_path: Path, text: str) -> None:
    folder = toys.folder(tmp_path)
    cell = tuning(folder.study, "toy", "dcn", "adam")[0]
    toys.finish(folder, cell, 1.0)
    (folder.run(cell) / "result.json").write_text(text)
    with pytest.raises(DataError, match=r"/result\.json: damaged, .*; remove it and run the study again"):
        folder.note(cell)
    folder.noted(cell).write_text(text)
    with pytest.raises(DataError, match=r"-s9-\w+\.json: damaged, .*; remove it and run the study again"):
        folder.record(cell)
