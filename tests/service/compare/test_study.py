"""The study file: what is accepted, what is refused, and the committed ones."""

import copy
from pathlib import Path
from typing import Any

import pytest

from sparta.models.errors import ConfigError
from sparta.service.compare.cells import Folder, final, tuning
from sparta.service.compare.study import Study, load_study
from sparta.service.config import load_job
from tests.service.compare import toys

ROOT = Path(__file__).parents[3]
STUDIES = sorted((ROOT / "benchmarks" / "studies").glob("*.yaml"))
JOBS = ROOT / "benchmarks" / "studies" / "jobs.yaml"


def changed(place: Path, *path: str, value: Any) -> Path:
    """A study file in which one key is another."""
    raw = copy.deepcopy(toys.STUDY)
    *parents, last = path
    below = raw
    for parent in parents:
        below = below.setdefault(parent, {})
    below[last] = value
    return toys.write(place, **raw)


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (("tuning", "seed"), 1, "tuning.seed 1 is one of the seeds; take another"),
        (("tuning",), None, "tuning is missing"),
        (("tuning", "model"), "dlrm", "tuning.model dlrm: no model of the study; known: each, deepfm, dcn"),
        (("optimizers", "adam", "grid"), {"lr": [1]}, r"grids of unequal size \(adam 1, helen 2 cells\)"),
        (("optimizers", "adam", "grid"), {"lr": []}, "optimizers.adam.grid.lr: no value to try"),
        (
            ("optimizers", "adam", "grid"),
            {"xi": [1, 2]},
            r"grid: xi is no knob; known: lr, rho; .* knobs: \{xi: ",
        ),
        (("optimizers", "adam", "gird"), {}, "unknown key; did you mean optimizers.adam.grid"),
        (("optimizers", "adam", "grid"), {"lr": [0.1, 0.1]}, "grid.lr: a value is there twice"),
        (
            ("optimizers", "adam", "grid"),
            {"lr": [[1], [2]]},
            r"grid.lr: \[1\] is neither a number nor a word",
        ),
        (("optimizers", "adam", "grid"), {"lr": ["a/b", 2]}, "grid.lr: 'a/b' is neither a number nor a word"),
        (("resamples",), 1, "resamples 1: of one there is no spread"),
        (("seeds",), [1, 1], "one is there twice"),
        (("set",), {"train.seed": 3}, "set.train.seed: the study itself decides that; drop it"),
        (("models", "dcn", "set"), {"train.test": "kept"}, "models.dcn.set.train.test: the study itself"),
        (("data", "toy", "models"), {"dlrm": {}}, "data.toy.models: dlrm: no model of the study"),
        (("data", "toy", "published"), {"x": {"auc": 1, "logloss": 1}}, "data.toy.published: x: no model"),
        (("data", "toy", "fold"), 2, "folds are cut from the files of prepare, which is missing"),
        (("data", "toy", "fold"), 6, "data.toy.fold: 6: input should be less than or equal to 5"),
        (("models",), {}, "models"),
        (("data", "a/b"), {"job": "job.yaml"}, "data.a/b"),
    ],
)
def test_an_unfair_or_misspelt_study_is_refused_in_one_line(
    path: tuple[str, ...], value: Any, complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=complaint) as refused:
        load_study(changed(tmp_path, *path, value=value))
    assert "\n" not in str(refused.value)
    assert str(tmp_path / "study.yaml") in str(refused.value)


@pytest.mark.parametrize("text", ["[1]", "a: [", "name: {"])
def test_what_is_no_mapping_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"study\.yaml:(1:)? "):
        load_study(tmp_path / "study.yaml")
    with pytest.raises(ConfigError, match="No such file"):
        load_study(tmp_path / "other.yaml")


def test_paths_are_those_of_the_study_s_folder_and_a_word_is_a_built_in_spec(tmp_path: Path) -> None:
    data = {
        "a": {"job": "../jobs/a.yaml", "prepare": "raw/a.yaml"},
        "b": {"job": "/b.yaml", "prepare": "criteo"},
    }
    study = load_study(toys.write(tmp_path, data=data))
    assert study.data["a"].job == str(tmp_path.parent / "jobs" / "a.yaml")
    assert study.data["a"].prepare == str(tmp_path / "raw" / "a.yaml")
    assert (study.data["b"].job, study.data["b"].prepare) == ("/b.yaml", "criteo")


def test_without_a_grid_there_is_nothing_to_tune() -> None:
    plain = {name: {"set": one["set"]} for name, one in toys.STUDY["optimizers"].items()}
    study = Study.model_validate({**toys.STUDY, "tuning": None, "optimizers": plain})
    assert tuning(study, "toy", "dcn", "adam") == []
    assert [optimizer.label for optimizer in study.optimizers.values()] == ["adam", "helen"]


def test_the_jobs_that_are_shipped_are_trained_as_they_are(tmp_path: Path) -> None:
    folder = Folder(tmp_path, load_study(JOBS))
    for data in folder.study.data:
        cell = final(folder.study, data, "deepfm", "shipped", ())[0]
        settings = ["name=jobs", "train.ranks=1", "train.device=cpu", "train.test=kept"]
        shipped = load_job(Path(cell.job), settings)
        elsewhere = {"path": folder.job(cell).data.path}
        shipped = shipped.model_copy(update={"data": shipped.data.model_copy(update=elsewhere)})
        assert folder.job(cell) == shipped
        assert cell.seed == shipped.train.seed


@pytest.mark.parametrize("path", sorted(set(STUDIES) - {JOBS}), ids=lambda path: path.stem)
def test_every_cell_of_a_committed_study_is_an_ordinary_job_of_the_rows_engine(
    path: Path, tmp_path: Path
) -> None:
    study = load_study(path)
    assert study.name == path.stem
    folder, names, sizes = Folder(tmp_path, study), set(), set()
    for data in study.data:
        for model in study.models:
            for name, optimizer in study.optimizers.items():
                grid = tuning(study, data, model, name)
                sizes.add(len(grid))
                for cell in [*grid, *final(study, data, model, name, optimizer.points[0])]:
                    job, knobs = folder.job(cell), dict(cell.knobs)
                    names.add(cell.name)
                    assert (job.optim.tables.engine, job.train.ranks) == ("rows", 1)
                    assert job.optim.tables.lr == job.optim.dense.lr == knobs["lr"]
                    assert job.optim.tables.rho == knobs.get("rho", job.optim.tables.rho)
                    assert (job.train.seed, job.train.early_stop is not None) == (cell.seed, True)
                    assert job.train.test == ("kept" if cell.final else "unread")
    assert len(sizes) == 1, "the budgets are equal"
    assert names
