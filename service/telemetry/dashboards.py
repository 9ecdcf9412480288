"""Writes the Grafana dashboards: `python -m sparta.service.telemetry.dashboards k8s/base/dashboards`.

The files are committed; a test compares them with what this would write.
"""

import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from sparta.service.telemetry.tables_board import tables
from sparta.service.telemetry.training_board import training

FILES = {"training.json": training, "tables.json": tables}


def text(dashboard: Dashboard) -> str:
    """A dashboard as Grafana reads it."""
    return JSONEncoder(sort_keys=True, indent=1).encode(dashboard) + "\n"


def main(folder: Path) -> None:
    """Write every dashboard into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, build in FILES.items():
        (folder / name).write_text(text(build()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
