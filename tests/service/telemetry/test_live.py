"""A real Prometheus scrapes two ranks of made-up numbers: dashboards get answers, rules can be evaluated."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sparta.launcher.prometheus import prometheus
from sparta.launcher.watch import configuration, link, plain_rules
from tests.scraping import RULES, Question, broken_rules, eventually, every_question, has_data, query
from tests.service.telemetry.fake_ranks import FakeRank, fake_run

pytestmark = [pytest.mark.slow, pytest.mark.prometheus]
RUN = '{name="clicks",run="clicks-2"}'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("live")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> Iterator[list[FakeRank]]:
    with fake_run(folder / "runs" / "clicks-2", name="clicks", ranks=2) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def url(folder: Path, ranks: list[FakeRank]) -> Iterator[str]:
    targets = folder / "targets"
    targets.mkdir()
    link(folder / "runs", targets)
    with prometheus(configuration(targets, plain_rules(RULES, folder), scrape_seconds=1)) as server:
        yield server.url


def test_every_expression_of_every_dashboard_has_data(url: str, ranks: list[FakeRank]) -> None:
    silent: list[Question] = every_question()

    def all_answered() -> bool:
        for rank in ranks:
            rank.advance()
        silent[:] = [asked for asked in silent if not has_data(url, asked.plain())]
        return not silent

    try:
        eventually(all_answered)
    finally:
        assert silent == []


def test_every_rule_can_be_evaluated(url: str) -> None:
    eventually(lambda: broken_rules(url) == [])


def test_series_are_named_by_job_run_and_rank(url: str, ranks: list[FakeRank]) -> None:
    def found() -> set[tuple[str, str, str, str]]:
        return {
            (labels["job"], labels["name"], labels["run"], labels["rank"])
            for labels in map(dict, query(url, "sparta_step"))
        }

    eventually(lambda: len(found()) == 2)
    assert found() == {("sparta", "clicks", "clicks-2", "0"), ("sparta", "clicks", "clicks-2", "1")}


def test_counters_arrive_as_they_were_counted(url: str, ranks: list[FakeRank]) -> None:
    counted = sum(rank.steps for rank in ranks)
    total = f"sum(sparta_examples_total{RUN})"
    eventually(lambda: list(query(url, total).values()) == [counted])


def test_what_prometheus_refuses_is_an_error_that_says_why(url: str) -> None:
    with pytest.raises(AssertionError, match="parse error"):
        query(url, "sum(")


def test_a_rank_that_is_gone_is_missed(url: str, ranks: list[FakeRank]) -> None:
    """The last test here: it ends a rank."""
    eventually(lambda: list(query(url, 'count(up{job="sparta"} == 1)').values()) == [2])
    ranks[1].close()
    missed = 'ALERTS{alertname="SpartaRankDown",alertstate="pending"}'
    eventually(lambda: len(query(url, missed)) == 1)
    assert list(query(url, 'up{job="sparta"} == 0')) == [
        (("__name__", "up"), ("instance", ranks[1].address), ("job", "sparta"), ("name", "clicks"))
    ]
