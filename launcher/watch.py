"""`sparta watch [RUNS]`: a real Prometheus beside the runs of this machine, until Ctrl-C.

Every rank of a run writes its address into `metrics.json` of the run directory, in the format of Prometheus'
file_sd. Its patterns allow no `*` for a folder, so one folder of links stands between, kept up to date. The
alert rules are those of k8s/base: a link beside this file, which an installed wheel has as a file.
"""

import argparse
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from sparta.launcher.prometheus import prometheus
from sparta.launcher.run_directory import JOB, RUNS
from sparta.models.errors import ConfigError

TARGETS = "metrics.json"
"""In a run directory: where its ranks can be scraped."""
RULES = Path(__file__).with_name("rules.yaml")
SCRAPE_SECONDS = 5
LOOK_SECONDS = 1.0
"""How often new and finished runs are looked for."""


def watch(argv: Sequence[str]) -> int:
    """Watch until Ctrl-C or SIGTERM; the exit code, 0."""
    parser = argparse.ArgumentParser(
        prog="sparta watch", description="Start a Prometheus on this machine that scrapes local runs."
    )
    parser.add_argument(
        "runs", type=Path, nargs="?", default=RUNS, help="folder of runs, or one run (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=0, help="port of its page (default: a free one)")
    chosen = parser.parse_args(argv)
    if not chosen.runs.is_dir():
        raise ConfigError(
            f"{chosen.runs}: no such folder; name one that holds runs, or start a training first"
        )
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with TemporaryDirectory(prefix="sparta-watch-") as folder, suppress(KeyboardInterrupt):
            _watch(chosen.runs, chosen.port, Path(folder))
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def configuration(targets: Path, rules: Path, *, scrape_seconds: float = SCRAPE_SECONDS) -> dict[str, Any]:
    """Prometheus' configuration: all files of a folder in the format of file_sd, and a file of rules."""
    often = f"{scrape_seconds:g}s"
    return {
        "global": {"scrape_interval": often, "scrape_timeout": often, "evaluation_interval": often},
        "rule_files": [str(rules)],
        "scrape_configs": [
            {
                "job_name": "sparta",
                # Each rank names its run and rank itself.
                "honor_labels": True,
                "file_sd_configs": [{"files": [str(targets / "*.json")], "refresh_interval": often}],
            }
        ],
    }


def plain_rules(rules: Path, folder: Path) -> Path:
    """Write the groups of a PrometheusRule object into a folder, as a file that Prometheus reads."""
    plain = folder / "rules.yml"
    plain.write_text(yaml.safe_dump({"groups": yaml.safe_load(rules.read_text())["spec"]["groups"]}))
    return plain


def link(runs: Path, targets: Path) -> None:
    """One link in `targets` for each run that can be scraped now; `runs` may be a single run."""
    found = [runs] if (runs / JOB).exists() else sorted(runs.glob("*"))
    wanted = {
        f"{run.resolve().name}.json": run.resolve() / TARGETS for run in found if (run / TARGETS).exists()
    }
    for name in {entry.name for entry in targets.iterdir()} - set(wanted):
        (targets / name).unlink()
    for name, file in wanted.items():
        with suppress(FileExistsError):
            (targets / name).symlink_to(file)


def _watch(runs: Path, port: int, folder: Path) -> None:
    targets = folder / "targets"
    targets.mkdir()
    link(runs, targets)
    rules = plain_rules(RULES, folder)
    with prometheus(configuration(targets, rules), port=port) as server:
        print(f"Prometheus on {server.url}, beside the runs in {runs}; Ctrl-C ends it", flush=True)
        print(f"  alerts: {server.url}/alerts", flush=True)
        while server.process.poll() is None:
            link(runs, targets)
            time.sleep(LOOK_SECONDS)
    raise ConfigError(f"{server.url}: Prometheus has ended by itself; start `sparta watch` again")
