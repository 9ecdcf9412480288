"""The table of all metrics, for readers: `python -m sparta.service.telemetry.reference service/RUNBOOK.md`.

Puts it between the markers of that file; a test compares them.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry

from sparta.service.telemetry.instruments import Instruments

BEGIN, END = "<!-- metrics -->", "<!-- /metrics -->"
_SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
    "info": ("_info",),
}


@dataclass(frozen=True)
class Entry:
    """One instrument as a reader meets it."""

    name: str
    kind: str
    """counter, gauge, histogram or info."""
    labels: tuple[str, ...]
    """Its own; `run` and `rank` come on top."""
    text: str

    @property
    def series(self) -> tuple[str, ...]:
        """The names that Prometheus stores it under."""
        return tuple(self.name + suffix for suffix in _SUFFIXES[self.kind])


def entries() -> list[Entry]:
    """Every instrument, in the order of instruments.py."""
    found = []
    for instrument in vars(Instruments(CollectorRegistry())).values():
        (family,) = instrument.describe()
        found.append(Entry(family.name, family.type, instrument._labelnames, family.documentation))
    return found


def markdown() -> str:
    """The table."""
    lines = ["| metric | kind | labels | what it is |", "|---|---|---|---|"]
    for entry in entries():
        name = entry.series[0] if len(entry.series) == 1 else entry.name
        labels = " ".join(f"`{label}`" for label in entry.labels)
        lines.append(f"| `{name}` | {entry.kind} | {labels} | {entry.text} |")
    return "\n".join(lines)


def renewed(text: str) -> str:
    """A page with the table as it is now."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{markdown()}\n{END}{after}"


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(renewed(page.read_text()))
