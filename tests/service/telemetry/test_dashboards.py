"""The dashboards: committed as built, and every panel says what it shows."""

import json
from itertools import combinations
from typing import Any

import pytest

from sparta.service.telemetry.dashboards import FILES, main, text
from tests.scraping import BOARDS, questions
from tests.service.telemetry.promql import groupings

BUILT = [pytest.param(json.loads(text(build())), id=name) for name, build in FILES.items()]
NUMBERS = {"stat", "timeseries", "bargauge", "heatmap"}


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def test_the_committed_files_are_what_is_built(tmp_path: Any) -> None:
    main(tmp_path)
    assert {path.name for path in BOARDS} == {path.name for path in tmp_path.iterdir()} == set(FILES)
    for path in BOARDS:
        assert path.read_text() == (tmp_path / path.name).read_text(), (
            "run python -m sparta.service.telemetry.dashboards k8s/base/dashboards"
        )


@pytest.mark.parametrize("board", BUILT)
def test_every_panel_is_described_and_has_a_unit(board: dict[str, Any]) -> None:
    titles = [panel["title"] for panel in board["panels"]]
    for panel in panels(board):
        assert len(panel["description"]) > 4
        assert panel["type"] in {*NUMBERS, "table"}
        # A heatmap has its unit on the axis.
        home = panel["options"]["yAxis"] if panel["type"] == "heatmap" else panel["fieldConfig"]["defaults"]
        assert home["unit"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert len(titles) - len(set(titles)) <= 2  # a number at a glance and its curve further down


@pytest.mark.parametrize("board", BUILT)
def test_every_series_has_a_legend_by_what_it_is_grouped_by(board: dict[str, Any]) -> None:
    for asked in questions(board):
        labels = {part.split("}}")[0] for part in asked.legend.split("{{")[1:]}
        assert labels <= groupings(asked.plain()), asked.panel
        assert asked.legend or asked.panel == "Versions" or asked.panel.startswith("variable")


@pytest.mark.parametrize("board", BUILT)
def test_expressions_of_a_panel_have_letters_of_their_own(board: dict[str, Any]) -> None:
    for panel in panels(board):
        letters = [target["refId"] for target in panel["targets"]]
        assert letters == sorted(set(letters))
        assert letters[0] == "A"


@pytest.mark.parametrize("board", BUILT)
def test_panels_stand_beside_each_other_and_have_numbers_of_their_own(board: dict[str, Any]) -> None:
    places = [panel["gridPos"] for panel in board["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("board", BUILT)
def test_job_run_and_rank_are_chosen_any_number_of_each(board: dict[str, Any]) -> None:
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert variables.pop("datasource")["type"] == "datasource"
    assert set(variables) >= {"name", "run", "rank"}
    for variable in variables.values():
        assert variable["multi"]
        assert variable["includeAll"]
        assert variable["allValue"] == ".*"
        # A variable that no expression reads would choose nothing.
        assert f'=~"${variable["name"]}"' in "".join(asked.expression for asked in questions(board))


def test_the_dashboards_are_two_of_their_own() -> None:
    boards = [json.loads(path.read_text()) for path in BOARDS]
    assert {board["title"] for board in boards} == {"Training", "Tables & Helen"}
    assert len({board["uid"] for board in boards}) == 2
