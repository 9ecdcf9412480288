"""What it costs a training to be watched: instruments told of every step, tables looked at once a second, and an
endpoint that another process scrapes.

DeepFM of the speed shape (benchmarks/shape.py) with Helen, one process. Stretches with and without take turns,
so that whatever else the machine does hits both alike; they are short, for noise of a second is not that of a minute.
Scrapes come so many seconds apart, and in watched stretches only: twice as many as a job sees. Prints one JSON object.

    python benchmarks/telemetry.py [--rounds 80] [--steps 10] [--scrape-seconds 5]
"""

import argparse
import json
import statistics
import sys
import time
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path
from urllib.request import urlopen

import torch

sys.path.insert(0, str(Path(__file__).parent))
from measured import as_launched, circumstances, cores, ratio
from shape import MILLION, Shape
from turns import alone, batches, built

from sparta.service.telemetry.endpoint import Endpoint
from sparta.service.telemetry.telemetry import Telemetry

LOG_EVERY = 10
"""Steps between two logged ones, as in a job that does not say."""
DRIFT = 0.03
"""Both sides are the same steps, so what else differs between two hours differs for both."""


def scrape(port: int, seconds: float, wanted: Event) -> None:
    """What Prometheus does, in a process of its own, while it is wanted."""
    while True:
        wanted.wait()
        with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            answer.read()
        time.sleep(seconds)


def measure(options: argparse.Namespace) -> tuple[dict[str, list[float]], float]:
    """Seconds of stretches of steps, plain and watched; and of one look at the tables."""
    _, step = built({"name": "helen"}, Shape(rows=options.rows))
    given = batches(Shape(rows=options.rows), 16)
    telemetry = Telemetry(
        run="speed",
        rank=0,
        device=torch.device("cpu"),
        labels=("click",),
        rates={"tables": 1e-3, "dense": 1e-3},
    )
    endpoint = Endpoint(
        telemetry.registry,
        health=lambda: None,
        ready=lambda: True,
        status=lambda: telemetry.status,
        host="127.0.0.1",
        port=0,
    )

    def plain() -> None:
        for number in range(options.steps):
            step(given[number % len(given)])

    def watched() -> None:
        for number in range(options.steps):
            telemetry.before(step, 1.0)
            telemetry.phases.begin("data_wait")
            telemetry.phases.begin("input_dist")
            loss = step(given[number % len(given)], phase=telemetry.phases.begin)
            telemetry.after(step, number, 0, refused=False)
            if number % LOG_EVERY == 0:
                telemetry.logged(float(loss), LOG_EVERY * Shape().batch, 1.0)

    endpoint.start()
    context = get_context("spawn")
    wanted = context.Event()
    scraper = context.Process(
        target=scrape, args=(endpoint.port, options.scrape_seconds, wanted), daemon=True
    )
    scraper.start()
    plain()
    watched()
    taken: dict[str, list[float]] = {"plain": [], "watched": []}
    for turn in range(options.rounds):
        for name, work in [("plain", plain), ("watched", watched)][:: 1 if turn % 2 else -1]:
            (wanted.set if name == "watched" else wanted.clear)()
            began = time.perf_counter()
            work()
            taken[name].append(time.perf_counter() - began)
    began = time.perf_counter()
    telemetry.refresh()
    refreshed = time.perf_counter() - began
    scraper.kill()
    endpoint.close()
    return taken, refreshed


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=80)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--scrape-seconds", type=float, default=5.0)
    parser.add_argument("--rows", type=int, default=MILLION)
    parser.add_argument("--threads", type=int, default=cores())
    options = parser.parse_args()
    with alone(options.threads):
        taken, refreshed = measure(options)
    report = {
        "ratios": {"time when watched to that when not": ratio(taken["watched"], taken["plain"], DRIFT)},
        "steps": options.steps,
        "scrape_seconds": options.scrape_seconds,
        "step_milliseconds": round(1e3 * statistics.median(taken["plain"]) / options.steps, 2),
        "refresh_milliseconds": round(1e3 * refreshed, 1),
        **circumstances(),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    as_launched()
    main()
