"""From `sparta submit` to a dashboard: a real training on two ranks, scraped by a real Prometheus."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sparta.launcher.prometheus import prometheus
from sparta.launcher.watch import configuration, link, plain_rules
from tests.faults import harness
from tests.scraping import RULES, broken_rules, eventually, every_question, has_data, query
from tests.service import toys

pytestmark = [pytest.mark.slow, pytest.mark.prometheus]

MAIN = "import sys; from sparta.launcher.cli import main; sys.exit(main())"
STEPS = 600
"""Some seconds, in which all that a dashboard shows has happened."""
WITHOUT_DATA = {
    "sparta_gpu_memory_bytes": "there is no GPU",
}
"""Instruments whose expressions need not have data here, and why; five at most."""


@dataclass
class Watched:
    """A submitted run beside a Prometheus."""

    handle: str
    run: Path
    url: str

    def ask(self, *words: str) -> str:
        return sparta(*words, self.handle)


def sparta(*words: object) -> str:
    """What a `sparta` command prints."""
    done = subprocess.run(
        [sys.executable, "-c", MAIN, *map(str, words)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_STATE_HOME", str(folder / "state"))
    patch.setenv("OMP_NUM_THREADS", "1")
    targets = folder / "targets"
    targets.mkdir()
    job = harness.write_job(
        folder,
        toys.write_dataset(folder / "data"),
        optim={"tables": {"name": "helen", "lr": 1e-4, "rho": 0.05}, "dense": {"lr": 1e-4}},
        train={
            "epochs": 1000,
            "max_steps": STEPS,
            "ranks": 2,
            "log_every": 5,
            "evaluate_every": 100,
            "early_stop": None,
        },
        checkpoint={"every": 40, "keep": 1},
        metrics={"linger_seconds": 120},
        tolerate={"bad_rows": 1},
    )
    run = folder / "runs" / "clicks"
    handle = sparta("submit", job, "-s", "local_cwd", "--run-dir", run)
    with prometheus(configuration(targets, plain_rules(RULES, folder), scrape_seconds=1)) as server:
        eventually(lambda: (run / "metrics.json").exists())
        link(folder / "runs", targets)
        yield Watched(handle, run, server.url)
    patch.undo()


def test_every_dashboard_is_filled_and_every_rule_evaluated(watched: Watched) -> None:
    assert len(WITHOUT_DATA) <= 5
    questions = [
        asked for asked in every_question() if not any(name in asked.expression for name in WITHOUT_DATA)
    ]
    left_out = [asked for asked in every_question() if asked not in questions]
    assert len(left_out) <= 5
    silent = questions

    def all_answered() -> bool:
        nonlocal silent
        assert "RUNNING" in watched.ask("status")
        silent = [asked for asked in silent if not has_data(watched.url, asked.plain())]
        return not silent

    try:
        eventually(all_answered)
    finally:
        assert silent == []
    for asked in left_out:  # without data, but no error
        query(watched.url, asked.plain())
    eventually(lambda: broken_rules(watched.url) == [])
    firing = query(watched.url, 'ALERTS{alertstate="firing"}')
    assert firing == {}, "nothing is wrong with this run"


def test_what_was_scraped_is_what_the_result_says(watched: Watched) -> None:
    eventually(lambda: "SUCCEEDED" in watched.ask("status"), 300)
    result = json.loads((watched.run / "result.json").read_text())

    def last(metric: str) -> dict[str, float]:
        """What each rank said at last, by rank."""
        found = query(watched.url, f'last_over_time({metric}{{run="{watched.run.name}"}}[10m])')
        return {dict(labels)["rank"]: value for labels, value in found.items()}

    assert sum(last("sparta_examples_total").values()) == result["examples"]
    assert last("sparta_steps_total") == {"0": STEPS, "1": STEPS} == dict.fromkeys("01", result["steps"])
    assert last("sparta_checkpoints_total") == dict.fromkeys("01", result["checkpoints"]["saved"])
    test = query(watched.url, 'last_over_time(sparta_auc{split="test",task="click",rank="0"}[10m])')
    assert list(test.values()) == [result["eval"]["test"]["click"]["auc"]]
