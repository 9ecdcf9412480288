"""What it costs a training to be watched: instruments told of every step, tables looked at once a second, and an
endpoint that another process scrapes.

DeepFM of the speed shape (benchmarks/helen_step.py) with Helen, one process. Stretches with and without take turns,
so that whatever else the machine does hits both alike; prints one JSON object.

    python benchmarks/telemetry.py [--rounds 16] [--steps 40] [--scrape-seconds 5]
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from urllib.request import urlopen

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent))
import helen_step

from sparta.launcher.local import MEMORY_AND_THREADS
from sparta.service.telemetry.endpoint import Endpoint
from sparta.service.telemetry.telemetry import Telemetry
from sparta.sharding.quiet import silence

LOG_EVERY = 10
"""Steps between two logged ones, as in a job that does not say."""


def scrape(port: int, seconds: float) -> None:
    """What Prometheus does, in a process of its own."""
    while True:
        with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            answer.read()
        time.sleep(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--scrape-seconds", type=float, default=5.0)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args(
        namespace=argparse.Namespace(model="deepfm", dim=16, batch=4096, device="cpu")
    )
    silence()
    torch.set_num_threads(options.threads)
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    _, step = helen_step.built({"name": "helen"}, options.rows, options)
    given = helen_step.batches(options.rows, 16, options)
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
                telemetry.logged(float(loss), LOG_EVERY * options.batch, 1.0)

    endpoint.start()
    scraper = get_context("spawn").Process(
        target=scrape, args=(endpoint.port, options.scrape_seconds), daemon=True
    )
    scraper.start()
    plain()
    watched()
    taken: dict[str, list[float]] = {"plain": [], "watched": []}
    for turn in range(options.rounds):
        for name, work in [("plain", plain), ("watched", watched)][:: 1 if turn % 2 else -1]:
            began = time.perf_counter()
            work()
            taken[name].append(time.perf_counter() - began)
    ratios = [b / a for a, b in zip(taken["plain"], taken["watched"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    began = time.perf_counter()
    telemetry.refresh()
    refreshed = time.perf_counter() - began
    scraper.kill()
    endpoint.close()
    print(
        json.dumps(
            {
                "date": time.strftime("%Y-%m-%d"),
                "rounds": options.rounds,
                "steps": options.steps,
                "scrape_seconds": options.scrape_seconds,
                "step_milliseconds": round(1e3 * statistics.median(taken["plain"]) / options.steps, 2),
                "time_when_watched": round(middle, 4),
                "quartiles": [round(low, 4), round(high, 4)],
                "refresh_milliseconds": round(1e3 * refreshed, 1),
                "cores": len(os.sched_getaffinity(0)),
                "machine": platform.machine(),
                "versions": {
                    name: version(name)
                    for name in ("torch", "torchrec", "fbgemm-gpu-cpu", "prometheus-client")
                },
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    if not MEMORY_AND_THREADS.keys() <= os.environ.keys():  # read when torch loads
        os.execve(sys.executable, sys.orig_argv, {**MEMORY_AND_THREADS, **os.environ})
    main()
