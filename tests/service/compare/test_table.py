"""What a study has come to: the record, the tables, the picture."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from sparta.models.errors import ConfigError, DataError
from sparta.service.compare.cells import Cell, Folder
from sparta.service.compare.plot import MEAN, close_up, draw
from sparta.service.compare.result import collect
from sparta.service.compare.run import finals, go
from sparta.service.compare.table import (
    SURE,
    at_ends,
    cut_short,
    document,
    lines,
    matrix,
    plain,
    sign,
    verdicts,
)
from sparta.service.compare.verb import render
from tests.service.compare import toys


def ran(place: Path, strength: toys.Strength = toys.better, **changes: Any) -> Folder:
    folder = toys.folder(place, **changes)
    go(folder, toys.whole(folder), toys.runner(folder, strength), lambda line: None)
    return folder


def groups(result: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(group["model"], group["optimizer"]): group for group in result["groups"]}


def test_the_record_holds_every_seed_and_what_was_tried(tmp_path: Path) -> None:
    result = collect(ran(tmp_path))
    assert result["data"] == [{"name": "toy", "test_positives": 134, "test_rows": toys.ROWS}]
    helen = groups(result)["dcn", "helen"]
    assert helen["chosen"] == {"lr": 0.1, "rho": 0.7}
    assert [run["seed"] for run in helen["runs"]] == [1, 2]
    assert ["test" in record for record in helen["tuning"]] == [False, False]
    assert helen["auc"]["mean"] == pytest.approx(np.mean([run["test"]["auc"] for run in helen["runs"]]))
    gain = helen["to_first"]["auc"]
    adam = groups(result)["dcn", "adam"]
    assert gain["difference"] == pytest.approx(helen["auc"]["mean"] - adam["auc"]["mean"])
    assert gain["interval"][0] < gain["difference"] < gain["interval"][1]
    assert "interval" not in helen["to_first"]["logloss"]
    assert "to_first" not in adam
    assert helen["rerun"].startswith("sparta train ")
    assert result["machines"] == ["x86_64, cpu, 1 rank of 2 threads"]
    assert "; x86_64, cpu, 1 rank of 2 threads; sparta 0." in document(result)


def test_the_table_is_made_of_the_record_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ran(tmp_path)
    render(folder)
    result = json.loads(folder.result.read_text())
    assert document(result) == folder.table.read_text()
    assert folder.table.read_text() in capsys.readouterr().out
    assert folder.plot.read_bytes().startswith(b"\x89PNG\r\n")
    assert ("`*`: p <" in document(result)) == (len(result["seeds"]) > 1)
    assert "Bold: " in document(result)
    assert "Bold: " not in document({**result, "groups": result["groups"][:1]})  # nothing is compared


def test_rows_are_models_columns_are_optimizers_and_the_best_is_bold(tmp_path: Path) -> None:
    result = collect(
        ran(tmp_path, lambda cell: toys.better(cell) if cell.model == "deepfm" else 3 - toys.better(cell))
    )
    for metric in ("auc", "logloss"):
        head, rule, *rows = matrix(result, "toy", metric).splitlines()
        assert head == f"| {'AUC' if metric == 'auc' else 'LogLoss'} | Adam | Helen |"
        assert rule == "| --- | --- | --- |"
        for row, (model, best) in zip(rows, (("deepfm", 1), ("dcn", 0)), strict=False):
            cells = [cell.strip() for cell in row.strip("|").split("|")][1:]
            means = [groups(result)[model, name][metric]["mean"] for name in ("adam", "helen")]
            assert [cell.strip("*\\") for cell in cells] == [plain(mean) for mean in means]
            assert [cell.startswith("**") for cell in cells] == [best == 0, best == 1]
        assert rows[2].startswith("| mean | ")


def of_lr(chosen: float, tried: list[float], *, model: str = "m", **also: Any) -> dict[str, Any]:
    """A group whose optimizer chose this rate."""
    tuning = [{"knobs": {"lr": lr, "base": "adam"}} for lr in tried]
    knobs = {"lr": chosen, "base": "adam"}
    return {"data": "d", "model": model, "optimizer": "a", "chosen": knobs, "tuning": tuning, **also}


@pytest.mark.parametrize("chosen, ends", [(0.1, 1), (0.2, 0), (0.3, 1)])
def test_what_was_chosen_at_an_end_of_three_values_or_more_is_said_once_a_grid(
    chosen: float, ends: int
) -> None:
    labels = {"a": "Adam", "b": "SAM"}
    groups = [of_lr(chosen, [0.1, 0.2, 0.3], model=model) for model in ("m", "n")]  # they share the grid
    groups += [of_lr(0.2, [0.1, 0.2, 0.3]), of_lr(0.1, [0.1, 0.2]), of_lr(0.1, [], optimizer="b")]
    groups += [{**of_lr(0.1, [0.1, 0.2, 0.3]), "chosen": None}]  # all of it diverged
    told = at_ends(
        {"optimizers": labels, "groups": [{**of, "data": str(n // 2)} for n, of in enumerate(groups)]}
    )
    assert told == ["Chosen at an end of the values tried: Adam's lr (1 of 2)."] * ends


def test_runs_that_early_stopping_did_not_end_are_counted_where_it_ended_others() -> None:
    def study(*early: bool | None) -> dict[str, Any]:
        runs = [{"valid": None} if one is None else {"valid": {}, "stopped_early": one} for one in early]
        groups = [{"optimizer": name, "runs": runs[n::2]} for n, name in enumerate("ab")]
        return {"optimizers": {"a": "Adam", "b": "SAM"}, "groups": groups}

    said = "Runs that ended with their last epoch, before they were stopped early:"
    assert cut_short(study(True, True, False, None, False, True)) == [f"{said} Adam 2 of 3."]
    assert cut_short(study(True, False, True, False)) == [f"{said} SAM 2 of 2."]
    assert cut_short(study(True, True)) == cut_short(study(False, False)) == []


def test_a_failed_seed_is_never_dropped(tmp_path: Path) -> None:
    def wild(cell: Cell) -> float | None:
        return None if (cell.optimizer, cell.seed) == ("helen", 2) else 1.0

    result = collect(ran(tmp_path, wild))
    helen = groups(result)["deepfm", "helen"]
    assert [run["valid"] is None for run in helen["runs"]] == [False, True]
    assert not {"auc", "to_first"} & set(helen)
    assert "| DeepFM | **" in matrix(result, "toy", "auc")
    assert matrix(result, "toy", "auc").count("| 1 of 2 diverged |") == 2
    assert lines(result).count("| Helen | 1 of 2 diverged |") == 2
    draw(result, tmp_path / "study.png")


def test_a_grid_that_diverged_is_told_and_a_first_that_did_leaves_nothing_to_compare_with(
    tmp_path: Path,
) -> None:
    result = collect(ran(tmp_path, lambda cell: None if cell.optimizer == "adam" else 1.0))
    assert groups(result)["dcn", "adam"]["chosen"] is None
    assert lines(result).count("| Adam | diverged in tuning |") == 2
    assert not any("to_first" in group for group in result["groups"])
    assert verdicts(result) == []
    draw(result, tmp_path / "study.png")


def test_what_is_not_done_is_left_out_and_with_nothing_done_there_is_no_table(tmp_path: Path) -> None:
    folder = toys.folder(tmp_path)
    with pytest.raises(ConfigError, match="no cell is done with all its seeds yet"):
        collect(folder)
    folder = ran(tmp_path)
    cell = next(
        cell
        for cell in finals(folder, toys.whole(folder))
        if (cell.model, cell.optimizer) == ("dcn", "helen")
    )
    (folder.path / "cells" / f"{folder.key(cell)}.json").unlink()
    result = collect(folder)
    assert ("dcn", "helen") not in groups(result)
    assert "Not all is done: of 4 lines 1 are missing." in document(result)
    assert "| DCN | " in matrix(result, "toy", "auc")
    assert matrix(result, "toy", "auc").splitlines()[3].endswith("| — |")


def test_scores_that_are_not_the_run_s_are_refused(tmp_path: Path) -> None:
    folder = ran(tmp_path)
    path = folder.run(finals(folder, toys.whole(folder))[0]) / "scores" / "rank-00000.npy"
    kept = np.load(path)
    np.save(path, kept * np.array([-1, 1, 1], np.float32))
    with pytest.raises(DataError, match="was scored"):
        collect(folder)
    np.save(path, np.roll(kept, 1, axis=0))
    with pytest.raises(DataError, match="other test rows"):
        collect(folder)


def test_without_resamples_the_t_test_decides(tmp_path: Path) -> None:
    folder = ran(tmp_path, resamples=0)
    result = collect(folder)
    gain = groups(result)["dcn", "helen"]["to_first"]["auc"]
    assert set(gain) == {"difference", "by_seed", "p"}
    assert sign({**gain, "p": SURE / 2}) == 1
    assert sign({**gain, "p": SURE}) == 0
    assert sign({**gain, "p": None}) == 0
    assert sign({**gain, "difference": -gain["difference"], "p": SURE / 2}) == -1
    assert "[95%]" not in document(result)
    assert "bootstrap" not in document(result)


@pytest.mark.parametrize(
    "interval, p, which",
    [
        ([0.001, 0.002], 0.01, 1),
        ([0.001, 0.002], 0.2, 0),
        ([-0.001, 0.002], 0.01, 0),
        ([-0.002, -0.001], 0.01, -1),
        ([0.001, 0.002], None, 1),
    ],
)
def test_better_is_said_where_neither_rows_nor_seeds_would_say_otherwise(
    interval: list[float], p: float | None, which: int
) -> None:
    assert sign({"difference": sum(interval) / 2, "interval": interval, "p": p}) == which


def test_better_is_not_said_where_rows_and_seeds_together_would_say_otherwise() -> None:
    """Of each alone it is just sure: DNN with RAdam on criteo_tb80k."""
    gain = {"difference": -0.0153, "interval": [-0.0303, -0.0017], "p": 0.044}
    assert sign(gain) == -1
    parts = {"standard_error": 0.0073, "by_seed": [-0.0096, -0.0153, -0.0210]}
    assert sign({**gain, **parts}) == 0
    assert sign({**gain, **parts, "standard_error": 0.005}) == -1


def test_what_a_reader_must_know_is_said(tmp_path: Path) -> None:
    result = collect(ran(tmp_path, note="One thing was changed later."))
    assert "One thing was changed later." in document(result)


def test_a_star_says_that_p_is_small() -> None:
    group = {
        "data": "d",
        "model": "m",
        "chosen": {},
        "runs": [1],
        "tuning": [],
        "logloss": {"mean": 0.4, "sd": 0.0},
    }
    score = {"auc": {"mean": 0.8, "sd": 0.0}}
    result: dict[str, Any] = {
        "data": [{"name": "d", "published": {"m": {"auc": 0.81, "logloss": 0.39}}}],
        "models": {"m": "M", "n": "N"},
        "optimizers": {"a": "A", "b": "B"},
        "groups": [
            {**group, **score, "optimizer": "a"},
            {**group, **score, "optimizer": "b", "to_first": {"auc": {"p": 0.049}, "logloss": {"p": 0.051}}},
        ],
    }
    assert matrix(result, "d", "auc").splitlines()[-1] == "| M | **.8000** | **.8000**\\* | .8100 |"
    assert matrix(result, "d", "logloss").splitlines()[-1] == "| M | **.4000** | **.4000** | .3900 |"
    assert matrix(result, "d", "auc").splitlines()[0] == "| AUC | A | B | published |"


def test_it_says_where_an_optimizer_does_not_help(tmp_path: Path) -> None:
    result = collect(ran(tmp_path, seeds=[1, 2, 3]))
    gains = {(group["model"], group["optimizer"]): group.get("to_first") for group in result["groups"]}
    for model, interval in (("deepfm", [-0.1, -0.01]), ("dcn", [-0.1, 0.1])):
        gains[model, "helen"]["auc"] |= {"difference": -0.02, "interval": interval, "standard_error": 0.005}
        gains[model, "helen"]["auc"] |= {"by_seed": [-0.021, -0.02, -0.019]}
    assert verdicts(result) == [
        "toy, DeepFM: worse than Adam: Helen -.0200 [-.1000, -.0100].",
        "No difference is shown in the other 1 of 2 comparisons with Adam.",
    ]
    gains["deepfm", "helen"]["auc"]["interval"] = [-0.1, 0.1]
    assert verdicts(result) == ["No difference is shown in any of 2 comparisons with Adam."]
    for model in ("deepfm", "dcn"):
        gains[model, "helen"]["auc"] |= {"difference": 0.02, "interval": [0.01, 0.1]}
        gains[model, "helen"]["auc"] |= {"by_seed": [0.021, 0.02, 0.019]}
    assert verdicts(result) == [
        f"toy, {model}: better than Adam: Helen +.0200 [+.0100, +.1000]." for model in ("DeepFM", "DCN")
    ]


def test_every_line_of_a_table_has_as_many_cells(tmp_path: Path) -> None:
    result = collect(ran(tmp_path))
    alone = collect(ran(tmp_path, optimizers={"adam": toys.STUDY["optimizers"]["adam"]}))
    for text in (lines(result), lines(alone), matrix(result, "toy", "auc")):
        assert len({line.count(" | ") for line in text.splitlines()}) == 1
    assert lines(alone).splitlines()[0] == "| data | model | optimizer | test AUC | LogLoss | chosen |"
    assert "**" not in matrix(alone, "toy", "auc")


def test_of_a_single_seed_no_deviation_and_no_test_is_told(tmp_path: Path) -> None:
    result = collect(ran(tmp_path, seeds=[1]))
    shown = document(result)
    assert "±" not in shown
    assert "t-test" not in shown
    assert "better and worse are said where they leave 0 out." in shown
    draw(result, tmp_path / "study.png")


@pytest.mark.parametrize("label", ["Deep|FM", "a $\\foo{$ b"])
def test_any_label_can_be_shown(tmp_path: Path, label: str) -> None:
    models = {"deepfm": {"label": label, "set": {"model.name": "deepfm"}}}
    result = collect(ran(tmp_path, models=models))
    shown = lines(result).splitlines() + matrix(result, "toy", "auc").splitlines()[2:]
    assert any(label.replace("|", "\\|") in line for line in shown)
    draw(result, tmp_path / "study.png")


@pytest.mark.parametrize("off, cut", [(0.505, True), (0.69, False)])
def test_of_means_one_that_is_far_off_does_not_flatten_the_others_but_is_written(
    off: float, cut: bool
) -> None:
    axis = Figure().subplots()
    for place, value in enumerate([0.70, 0.705, 0.71, 0.715, 0.72, 0.725, 0.73, 0.735, 0.74, off]):
        axis.plot([place], [value], "o", gid=MEAN)
    close_up(axis)
    bottom, top = axis.get_ylim()
    assert bottom < 0.70 < 0.74 < top
    assert (bottom > off) == cut
    assert [text.get_text() for text in axis.texts] == ["0.505"] * cut


def test_scores_that_are_gone_are_told_with_the_way_out(tmp_path: Path) -> None:
    folder = ran(tmp_path)
    shutil.rmtree(folder.path / "runs")
    with pytest.raises(
        DataError, match=r"the scores that are resampled are gone; remove .* or write resamples: 0"
    ):
        collect(folder)
