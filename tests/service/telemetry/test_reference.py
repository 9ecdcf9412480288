"""The page for those on call: complete, and true to the code."""

import re
from pathlib import Path

import yaml

from sparta.service.telemetry.reference import entries, markdown, renewed
from tests.scraping import RULES

PAGE = (Path(__file__).parents[3] / "service" / "RUNBOOK.md").read_text()


def test_the_table_of_metrics_is_as_it_is_written() -> None:
    assert renewed(PAGE) == PAGE, "run python -m sparta.service.telemetry.reference service/RUNBOOK.md"


def test_the_table_has_a_line_for_each_instrument() -> None:
    lines = markdown().splitlines()[2:]
    assert len(lines) == len(entries())
    for entry, line in zip(entries(), lines, strict=True):
        assert f"`{entry.name}" in line
        assert entry.text in line
        assert entry.labels == tuple(re.findall(r"`(\w+)`", line.split("|")[3]))


def test_every_alert_has_a_chapter_and_every_chapter_an_alert() -> None:
    groups = yaml.safe_load(RULES.read_text())["spec"]["groups"]
    alerts = [rule["alert"] for group in groups for rule in group["rules"]]
    assert re.findall(r"^### (Sparta\w+)$", PAGE, re.MULTILINE) == alerts


def test_every_chapter_says_what_it_means_and_what_to_do_first() -> None:
    chapters = re.split(r"^#+ ", PAGE, flags=re.MULTILINE)
    for chapter in chapters:
        if chapter.startswith("Sparta"):
            assert re.search(r"^\*\*First\*\*: ", chapter, re.MULTILINE), chapter
            assert re.search(r"^\*\*Look at\*\*: ", chapter, re.MULTILINE), chapter
