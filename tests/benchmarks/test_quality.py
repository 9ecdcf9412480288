"""The study of optimizers, all but the training: what is run, chosen, compared and said."""

import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import quality, quality_table
from benchmarks.quality_compare import Ranked, bootstrap, compared
from benchmarks.quality_study import ROOT, STUDY, Cell, best, load_study
from sparta.models.errors import ConfigError, DataError
from sparta.service.auc import auc
from sparta.service.config import load_job

few = settings(max_examples=40, deadline=None)


def model(rng: np.random.Generator, rows: int, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores with ties, and labels they have something to do with."""
    labels = rng.random(rows) < 0.4
    labels[:2] = False, True
    return np.round(strength * labels + rng.standard_normal(rows), 1).astype(np.float32), labels


@given(st.integers(2, 60), st.integers(0, 10_000))
@few
def test_a_weight_is_a_number_of_copies(rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, labels = model(rng, rows, 1.0)
    copies = rng.integers(0, 3, rows)
    copies[:2] = 1
    again = np.repeat(np.arange(rows), copies)
    expected = auc(scores[again], labels[again], np.ones(len(again), np.float32))
    assert Ranked(scores, labels).auc(copies.astype(np.float64)) == pytest.approx(expected, abs=1e-12)


def test_equal_models_differ_by_nothing_on_any_draw() -> None:
    scores, labels = model(np.random.default_rng(1), 200, 1.0)
    aucs = bootstrap([scores, 2 * scores], labels, resamples=50)
    found = compared(aucs[:, :1], aucs[:, 1:], [0.7], [0.7])
    assert found["interval"] == [0.0, 0.0]
    assert found["difference"] == found["standard_error"] == 0.0


def test_the_standard_error_is_that_of_fresh_test_rows() -> None:
    def drawn(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        scores, labels = model(np.random.default_rng(seed), 600, 1.0)
        return scores, scores + np.random.default_rng(-1 - seed & 0xFFFF).standard_normal(600) / 2, labels

    def difference(seed: int) -> float:
        one, other, labels = drawn(seed)
        return Ranked(one, labels).auc(np.ones(600)) - Ranked(other, labels).auc(np.ones(600))

    truth = np.std([difference(seed) for seed in range(300)])
    one, other, labels = drawn(1000)
    aucs = bootstrap([one, other], labels, resamples=400)
    found = compared(aucs[:, :1], aucs[:, 1:], [0.0], [0.0])
    assert 0.75 < found["standard_error"] / truth < 1.33
    assert found["interval"][1] - found["interval"][0] == pytest.approx(
        3.92 * found["standard_error"], rel=0.15
    )


def test_the_other_way_round_is_the_other_sign() -> None:
    rng = np.random.default_rng(3)
    scores, labels = model(rng, 300, 1.0)
    others = [scores + rng.standard_normal(300).astype(np.float32) for _ in range(3)]
    aucs = bootstrap([scores, *others], labels, resamples=60)
    one = compared(aucs[:, :2], aucs[:, 2:], [0.7, 0.8], [0.75, 0.6])
    back = compared(aucs[:, 2:], aucs[:, :2], [0.75, 0.6], [0.7, 0.8])
    assert one["difference"] == -back["difference"] == pytest.approx(0.075)
    assert one["interval"] == pytest.approx([-bound for bound in reversed(back["interval"])])
    assert one["by_seed"] == pytest.approx([-0.05, 0.2])


def tuned(valid: float | None, test: float = 0.5) -> dict[str, Any]:
    scores = None if valid is None else {"auc": valid}
    return {"data": "d", "optimizer": "o", "valid": scores, "test": {"auc": test}}


def test_validation_alone_chooses() -> None:
    records = [tuned(0.7, test=0.9), tuned(None), tuned(0.8, test=0.6), tuned(0.8, test=0.95)]
    assert best(records) is records[2]
    with pytest.raises(ConfigError, match="every cell of the grid diverged"):
        best([tuned(None)])


def every_cell() -> list[Cell]:
    study = load_study()
    cells = []
    for data in study.data:
        for name, optimizer in study.optimizers.items():
            cells += [*study.tuning(data, name), *study.final(data, name, optimizer.points[0])]
    return cells


def test_every_cell_is_an_ordinary_job_of_the_rows_engine() -> None:
    cells = every_cell()
    assert len({cell.key for cell in cells}) == len(cells)
    for cell in cells:
        job = load_job(ROOT / cell.data.job, cell.edits)
        knobs = dict(cell.knobs)
        assert (job.optim.tables.engine, job.optim.tables.base, job.train.ranks) == ("rows", "adam", 1)
        assert job.optim.tables.lr == job.optim.dense.lr == knobs["lr"]
        assert job.optim.tables.rho == knobs.get("rho", job.optim.tables.rho)
        assert (job.train.seed, job.train.early_stop is not None) == (cell.seed, True)


def test_budgets_are_equal_and_no_seed_is_tuned_on() -> None:
    study = load_study()
    cells = [study.tuning(data, name) for data in study.data for name in study.optimizers]
    assert {len(grid) for grid in cells} == {4}
    assert {cell.seed for grid in cells for cell in grid}.isdisjoint(study.seeds)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"tuning_seed": 1}, "is one of the seeds"),
        ({"optimizers": {"adam": {"grid": {"lr": [1]}}}}, "give every optimizer as many"),
        ({"optimizers": {"adam": {"grid": {"xi": [1, 2, 3, 4]}}}}, "a grid varies lr, rho"),
    ],
)
def test_an_unfair_study_is_refused(change: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    raw = yaml.safe_load(STUDY.read_text())
    for key, value in change.items():
        if key == "optimizers":
            raw[key]["adam"] |= value["adam"]
        else:
            raw[key] = value
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(ConfigError, match=complaint):
        load_study(path)


def test_a_cell_is_another_when_anything_in_its_job_is() -> None:
    study = load_study()
    cell = study.tuning("anime", "helen")[0]
    others = [
        study.tuning("anime", "helen")[1],
        study.final("anime", "helen", cell.knobs)[0],
        study.tuning("anime", "helen_dense")[0],
        Cell(cell.data, cell.optimizer, cell.knobs, cell.seed, {**cell.common, "model.embedding_dim": 8}),
    ]
    assert cell.fingerprint not in {other.fingerprint for other in others}
    same = study.tuning("anime", "helen")[0]
    assert same.key == cell.key


STUDIED = """
seeds: [1, 2]
tuning_seed: 9
resamples: 20
full_helen: helen
set: {}
data: {toy: {job: launcher/jobs/anime.yaml, set: {}, gain: true}}
optimizers:
  adam: {label: Adam, cost: adam, set: {}, grid: {lr: [0.1, 0.2]}}
  helen: {label: Helen, cost: helen, set: {optim.tables.name: helen}, grid: {lr: [0.1, 0.2]}}
"""


class NoWorkers:
    def submit(self, *_: object) -> None:
        raise AssertionError("a cell that is done is run again")


NOBODY = cast(ProcessPoolExecutor, NoWorkers())


@pytest.fixture
def studied(tmp_path: Path) -> tuple[Any, quality.Work]:
    """A study whose cells are all done: `lr` 0.2 is the better, Helen's scores are the better ones."""
    path = tmp_path / "study.yaml"
    path.write_text(STUDIED)
    study, work = load_study(path), quality.Work(tmp_path / "work")
    labels = np.arange(400) % 3 == 0
    for name, strength in (("adam", 0.5), ("helen", 2.0)):
        for cell in study.tuning("toy", name):
            work.note(cell, {"valid": {"auc": dict(cell.knobs)["lr"]}})
        for cell in quality.final_cells(study, work, "toy", name):
            noise = np.random.default_rng(cell.seed).standard_normal(400)
            scores = (strength * labels + noise).astype(np.float32)
            np.save(work.predictions(cell), np.stack([scores, labels.astype(np.float32)]))
            value = auc(scores, labels, np.ones(400, np.float32))
            more = {"test": {"auc": value, "logloss": 0.5}, "date": "2026-01-01", "versions": {}}
            work.note(cell, {"valid": {"auc": 0.6}, **more})
    return study, work


def test_the_final_runs_have_the_chosen_knobs_and_are_not_run_twice(studied: tuple[Any, Any]) -> None:
    study, work = studied
    cells = quality.final_cells(study, work, "toy", "helen")
    assert [(dict(cell.knobs)["lr"], cell.seed) for cell in cells] == [(0.2, 1), (0.2, 2)]
    assert len(quality.run(cells, work, NOBODY, final=True)) == 2
    (work.path / "cells" / f"{cells[0].key}.json").unlink()
    with pytest.raises(AssertionError, match="run again"):
        quality.run(cells, work, NOBODY, final=True)


def test_results_hold_all_that_the_table_needs(studied: tuple[Any, Any], tmp_path: Path) -> None:
    study, work = studied
    found = quality.collect(study, work, "toy")
    assert found is not None
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "toy.json").write_text(json.dumps(found))
    for date, ratio in (("2026-01-02", 9.9), ("2026-02-01", 1.6)):
        steps = tmp_path / f"helen_step-{date}.json"
        steps.write_text(json.dumps({"to_adam": {"adam": 1.0, "helen": ratio}}))
    text = quality_table.render(*quality_table.load(tmp_path / "out"))
    assert "toy: Helen helps: +." in text
    assert "| 2 of 2 | lr 0.2 | 1.60x |" in text
    assert str(tmp_path) not in json.dumps(found)


def test_an_unfinished_optimizer_is_left_out_and_without_the_first_there_is_nothing(
    studied: tuple[Any, Any],
) -> None:
    study, work = studied
    for name, left in (("helen", ["adam"]), ("adam", None)):
        cell = quality.final_cells(study, work, "toy", name)[0]
        (work.path / "cells" / f"{cell.key}.json").unlink()
        found = quality.collect(study, work, "toy")
        assert (found and [line["name"] for line in found["optimizers"]]) == left


def test_predictions_that_were_not_scored_are_refused(studied: tuple[Any, Any]) -> None:
    study, work = studied
    path = work.predictions(quality.final_cells(study, work, "toy", "helen")[1])
    np.save(path, np.load(path)[:, ::-1] * np.array([[-1.0], [1.0]], np.float32))
    with pytest.raises(DataError, match="was scored"):
        quality.collect(study, work, "toy")


def result(data: str, *, gain: bool = True, **differences: tuple[float, float]) -> dict[str, Any]:
    """A committed result; each optimizer's difference to Adam and its standard error."""
    score = {"auc": {"mean": 0.8, "sd": 0.001}, "logloss": {"mean": 0.4, "sd": 0.001}}
    adam = {"name": "adam", "label": "Adam", "cost": "adam", "chosen": {"lr": 0.001}, **score}
    lines = [adam]
    for name, (mean, error) in differences.items():
        interval = [mean - 2 * error, mean + 2 * error]
        to_first = {
            "difference": mean,
            "interval": interval,
            "standard_error": error,
            "by_seed": [mean, mean - 2 * error],
        }
        lines.append({**adam, "name": name, "label": name.upper(), "cost": name, "to_first": to_first})
    return {"data": data, "gain": gain, "full_helen": "helen", "optimizers": lines}


def test_it_says_where_helen_does_not_help() -> None:
    text = quality_table.render(
        [
            result("a", helen=(0.003, 0.001), sam=(0.001, 0.001)),
            result("b", helen=(0.001, 0.001), sam=(-0.003, 0.001)),
            result("c", helen=(-0.003, 0.001)),
        ],
        {},
    )
    assert "- a: Helen helps: +.0030 [+.0010, +.0050]. No difference shown: SAM." in text
    assert "- b: Helen does not help: +.0010 [-.0010, +.0030]. Worse than Adam: SAM." in text
    assert "- c: Helen does harm: -.0030 [-.0050, -.0010]." in text


def test_what_a_cheaper_helen_keeps_is_of_the_mean_gain_where_that_counts() -> None:
    cheap = {"helen_every2": (0.003, 0.0), "helen": (0.004, 0.0)}
    results = [
        result("a", **cheap),
        result("b", helen=(0.002, 0.0), helen_every2=(0.0021, 0.0)),
        result("c", gain=False, helen=(0.5, 0.0), helen_every2=(0.0, 0.0)),
    ]
    text = quality_table.render(results, {"helen_every2": 1.34})
    assert "- Mean gain over a, b: Helen +.0030 [+.0030, +.0030]." in text
    assert "- HELEN_EVERY2: +.0026 [+.0026, +.0026], 85% of it, at 1.34x the plain step." in text
    unsure = [result(name, helen=(0.001, 0.001), helen_every2=(0.003, 0.0)) for name in ("a", "b")]
    assert "- HELEN_EVERY2: +.0030 [+.0030, +.0030]." in quality_table.render(unsure, {})


def test_the_mean_of_data_sets_is_surer_than_each() -> None:
    one = {"difference": 0.002, "standard_error": 0.001}
    mean = quality_table.mean_gain([one] * 4)
    assert mean["difference"] == pytest.approx(0.002)
    assert mean["interval"] == pytest.approx([0.002 - 1.96 * 0.0005, 0.002 + 1.96 * 0.0005])


def test_the_table_has_a_line_an_optimizer_and_a_dash_for_an_unknown_cost() -> None:
    table = quality_table.render([result("a", sam=(0.001, 0.0), helen=(0.0, 0.0))], {"adam": 1.0})
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 3
    assert len({line.count("|") for line in lines}) == 1
    assert [line.split("|")[-2].strip() for line in lines[2:]] == ["1.00x", "—", "—"]


def test_writing_changes_only_what_is_between_the_markers_and_twice_is_once() -> None:
    text = f"before\n{quality_table.BEGIN}\nold\n{quality_table.END}\nafter\n"
    once = quality_table.placed(text, "new")
    assert once == f"before\n{quality_table.BEGIN}\nnew\n{quality_table.END}\nafter\n"
    assert quality_table.placed(once, "new") == once
    for broken in ("", quality_table.BEGIN, f"{quality_table.END}{quality_table.BEGIN}", text + text):
        with pytest.raises(ConfigError, match="each once"):
            quality_table.placed(broken, "new")


def test_names_come_in_the_study_s_order_and_unknown_ones_are_refused() -> None:
    assert quality.names("c,a", ["a", "b", "c"], "data") == ["a", "c"]
    assert quality.names(None, ["a", "b"], "data") == ["a", "b"]
    with pytest.raises(ConfigError, match="--data d: the study has a, b"):
        quality.names("d,a", ["a", "b"], "data")
