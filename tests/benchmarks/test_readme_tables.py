"""The README's tables are those of the committed results, and what the table of optimizers says of a cheaper Helen."""

import json
import math
import shlex
from pathlib import Path
from typing import Any

import pytest

from benchmarks import readme
from sparta.models.errors import ConfigError
from sparta.service.compare.cells import Folder, final
from sparta.service.compare.intervals import student
from sparta.service.compare.statistics import t_test
from sparta.service.compare.study import load_study
from sparta.service.compare.table import document

ROOT = Path(__file__).parents[2]


def result(**gains: dict[str, tuple[float, float]]) -> dict[str, Any]:
    """A committed result: by data set, each optimizer's difference to Adam and its standard error."""
    score = {"auc": {"mean": 0.8, "sd": 0.001}, "logloss": {"mean": 0.4, "sd": 0.001}}
    groups, names = [], {"adam": "Adam"}
    for data, optimizers in gains.items():
        run = {"valid": {}, "stopped_early": True}
        group = {"data": data, "model": "m", "chosen": {"lr": 0.001}, "runs": [run], "tuning": [], **score}
        groups.append({**group, "optimizer": "adam"})
        for name, (mean, error) in optimizers.items():
            names[name] = name.upper()
            told = {
                "difference": mean,
                "interval": [mean - 2 * error, mean + 2 * error],
                "standard_error": error,
                "by_seed": [mean, mean],
                "p": 0.5,
            }
            groups.append({**group, "optimizer": name, "to_first": {"auc": told}})
    return {
        "data": [{"name": name, "test_rows": 100} for name in gains],
        "models": {"m": "M"},
        "optimizers": names,
        "resamples": 10,
        "name": "s",
        "seeds": [1, 2],
        "tuning": None,
        "dates": ["2026-01-02"],
        "versions": [{"torch": "2"}],
        "groups": groups,
    }


def test_the_readme_s_tables_equal_the_committed_json() -> None:
    shown = readme.documents()
    assert [sorted(tables) for tables in shown.values()] == [
        sorted(["speed", *(path.parent.name for path in readme.RESULTS.glob("*/study.json"))]),
        ["measured"],
    ]
    for file, tables in shown.items():
        text = file.read_text()
        assert readme.placed(text, tables) == text, "run `python -m benchmarks.readme --write`"


@pytest.mark.parametrize(
    "path", sorted(readme.RESULTS.glob("*/study.json")), ids=lambda path: path.parent.name
)
def test_committed_results_are_a_study_s(path: Path) -> None:
    found = json.loads(path.read_text())
    assert found["name"] == path.parent.name
    assert (ROOT / "benchmarks" / "studies" / f"{found['name']}.yaml").exists()
    assert path.with_name("table.md").read_text() == document(found), "run `sparta compare --stage table`"
    for group in found["groups"]:
        assert [run["seed"] for run in group["runs"]] == found["seeds"]
        assert not any("test" in cell for cell in group["tuning"])


@pytest.mark.parametrize(
    "path", sorted(readme.RESULTS.glob("*/study.json")), ids=lambda path: path.parent.name
)
def test_committed_results_are_of_the_study_as_it_is_now(path: Path) -> None:
    found = json.loads(path.read_text())
    study = load_study(ROOT / "benchmarks" / "studies" / f"{found['name']}.yaml")
    folder = Folder(Path("studies", found["name"]), study)
    assert found["seeds"] == list(study.seeds)
    assert len(found["groups"]) == len(study.data) * len(study.models) * len(study.optimizers)
    for group in found["groups"]:
        if group["tuning"]:
            points = study.optimizers[group["optimizer"]].points
            assert [cell["knobs"] for cell in group["tuning"]] == [dict(knobs) for knobs in points]
        if "rerun" in group:
            chosen = tuple((group["chosen"] or {}).items())
            cell = final(study, group["data"], group["model"], group["optimizer"], chosen)[0]
            assert shlex.split(group["rerun"])[3:] == shlex.split(folder.command(cell))[3:]


def test_what_a_cheaper_helen_keeps_is_of_the_mean_gain_and_folds_are_one_data_set() -> None:
    found = result(
        a={"helen": (0.004, 0.0), "helen_every2": (0.003, 0.0)},
        b_fold1={"helen": (0.001, 0.002), "helen_every2": (0.0, 0.0)},
        b_fold2={"helen": (0.003, 0.002), "helen_every2": (0.004, 0.0)},
    )
    head, _, adam, helen, every2 = readme.quality(found, {"helen, ascend_every 2": 1.34}).splitlines()[2:]
    assert head == "| optimizer | step | a, 100 test rows | b, 2 folds, 200 test rows | mean | of HELEN's |"
    assert adam == "| Adam |  | .8000 | .8000 |  |  |"
    of_b, mean = "+.0020 [-.0008, +.0048]", "+.0030 [+.0016, +.0044]"
    assert helen == f"| HELEN |  | +.0040 [+.0040, +.0040] | {of_b} | {mean} | 100% |"
    assert every2.startswith(
        "| HELEN_EVERY2 | 1.34x | +.0030 [+.0030, +.0030] | +.0020 [+.0020, +.0020] | +.0025 "
    )
    assert every2.endswith("| 83% |")


def test_of_a_gain_that_is_none_there_is_no_share() -> None:
    unsure = {"helen": (0.001, 0.001), "helen_every2": (0.003, 0.0)}
    text = readme.quality(result(a=unsure, b=unsure), {})
    assert "of HELEN's" not in text
    assert text.endswith("| +.0030 [+.0030, +.0030] |")


def test_the_mean_of_data_sets_is_surer_than_each() -> None:
    mean = readme.mean_gain([{"difference": 0.002, "parts": [(1e-6, math.inf)]}] * 4)
    assert mean["difference"] == pytest.approx(0.002)
    assert mean["interval"] == pytest.approx([0.002 - 1.96 * 0.0005, 0.002 + 1.96 * 0.0005], abs=1e-7)


def test_seeds_that_differ_make_a_gain_less_sure_as_rows_do() -> None:
    found = result(a={"helen": (0.0, 0.003)})
    found["groups"][1]["to_first"]["auc"]["by_seed"] = [-0.004, 0.004, -0.004, 0.004]
    of_seeds = 0.004 * math.sqrt(4 / 3) / 2  # of a mean of four
    error = math.hypot(0.003, of_seeds)
    freedom = error**4 / (of_seeds**4 / 3)
    low, high = readme.gains_of(found)["a"]["helen"]["interval"]
    assert (low, high) == pytest.approx((-student(0.95, freedom) * error, student(0.95, freedom) * error))
    assert high > 2.0 * error


def test_where_only_seeds_differ_the_interval_is_the_t_test_s() -> None:
    """It leaves out 0 exactly where p < .05."""
    found = result(a={"helen": (0.003, 0.0)})
    told = found["groups"][1]["to_first"]["auc"]
    for by_seed in ([0.001, 0.003, 0.005], [0.0024, 0.003, 0.0036], [0.0018, 0.003, 0.0042]):
        told["by_seed"] = by_seed
        low, _ = readme.gains_of(found)["a"]["helen"]["interval"]
        p = t_test(by_seed)
        assert p is not None
        assert (low > 0) == (p < 0.05)


def test_of_what_diverged_in_a_fold_there_is_no_gain_and_no_mean() -> None:
    one = {"helen": (0.004, 0.0), "helen_every2": (0.003, 0.0)}
    found = result(a=one, b_fold1=one, b_fold2=one)
    del found["groups"][-1]["to_first"]
    *_, helen, every2 = readme.quality(found, {}).splitlines()
    assert helen.count("+.0040 [+.0040, +.0040]") == 3
    assert every2 == "| HELEN_EVERY2 |  | +.0030 [+.0030, +.0030] | diverged | diverged |  |"


def test_the_newest_costs_count(tmp_path: Path) -> None:
    assert readme.costs(tmp_path) == {}
    for date, ratio in (("2026-02-01", 1.6), ("2026-01-02", 9.9)):
        (tmp_path / f"helen_step-{date}.json").write_text(
            json.dumps({"ratios": {"helen to adam": {"median": ratio}, "helen to sam": {"median": 9.0}}})
        )
    assert readme.costs(tmp_path) == {"adam": 1.0, "helen": 1.6}


def test_writing_changes_only_what_is_between_the_markers_and_twice_is_once() -> None:
    text = "before\n<!-- a -->\nold\n<!-- /a -->\nafter\n"
    once = readme.placed(text, {"a": "new"})
    assert once == "before\n<!-- a -->\nnew\n<!-- /a -->\nafter\n"
    assert readme.placed(once, {"a": "new"}) == once
    for broken in ("", "<!-- a -->", "<!-- /a --><!-- a -->", text + text):
        with pytest.raises(ConfigError, match="each once"):
            readme.placed(broken, {"a": "new"})
    with pytest.raises(ConfigError, match="run `sparta compare`"):
        readme.tables(Path("nowhere"))
