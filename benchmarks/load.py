"""The service under load: its capacity, what it adds to the computing, and what it does at four times its capacity.

Usage: python benchmarks/load.py [--shape 64,64,48] [--capacity-s 120] [--soak-s 120] [--threads 1] [--unjudged FOLDER]
The service runs on this machine with the release that HEPALIGN_RELEASE names, else the champion, else the starter;
`--unjudged` takes a folder that no gate has seen. One line of JSON a figure; 20 minutes of soak: --soak-s 1200.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from hepalign.image.nifti import write_nifti
from hepalign_serve.client import Client
from hepalign_serve.run import Server, serving
from hepalign_serve.settings import Lane, Replicas, Settings
from scene import Scene, scene
from timing import single

USERS_FILE = Path(__file__).with_name("load_users.py")
# Of so many users a dozen wait for an answer: what the others ask makes four times the capacity, and a little more.
CASES, CROWD, TIMES = 3, 200, 4.4
REJECTION_MS, OVERHEAD_MS, OVERHEAD_SHARE, GROWTH_SHARE = 200.0, 150.0, 0.15, 0.05
# Volumes above this are judged by the overhead's share of the computing, smaller ones by its milliseconds.
LARGE_VOXELS = 256 * 256 * 100


def main() -> None:
    """Print the figures."""
    words = arguments()
    size = [int(n) for n in words.shape.split(",")]
    made = scene((size[0], size[1], size[2]), seed=7000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lane = {"threads": words.threads}
        settings = Settings(
            port=0, data_folder=folder / "service", release=words.unjudged, unjudged_release=bool(words.unjudged),
            plan=Lane(**lane), guide=Lane(**lane, deadline_s=600), synthesis=Replicas(**lane),
            inpainting=Replicas(**lane), limits={"requests_per_minute": 10**6},
        )  # fmt: skip
        with serving(settings) as service:
            cases = planned(service, made, folder)
            alone = phase(service, cases, folder / "alone", users=1, rate=None, seconds=words.capacity_s)
            done = [line for line in alone if line["status"] == 200]
            span = done[-1]["began"] + done[-1]["seconds"] - done[0]["began"]
            capacity = len(done) / span
            single("guides a minute, one after the other", [60 * capacity], "1/min", shape=words.shape)
            overhead(done, large=size[0] * size[1] * size[2] >= LARGE_VOXELS)
            with Memory() as memory:
                crowd = phase(
                    service, cases, folder / "crowd", users=CROWD, rate=TIMES * capacity, seconds=words.soak_s
                )
        crowded(crowd, words.soak_s, capacity)
        memory.tell()


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="64,64,48")
    parser.add_argument("--capacity-s", type=int, default=120)
    parser.add_argument("--soak-s", type=int, default=120)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--unjudged", default="")
    return parser.parse_args()


def planned(service: Server, made: Scene, folder: Path) -> list[str]:
    """Cases with everything but the guide."""
    roles = {"pmr": made.plan.pmr, "pct": made.plan.pct, "ict": made.ict, "ict-probe-mask": made.probe_mask}
    for role, volume in roles.items():
        write_nifti(volume, folder / f"{role}.nii.gz")
    cases = []
    with Client(service.url, service.token) as client:
        for _ in range(CASES):
            cases.append(client.open_case())
            for role in roles:
                client.upload(cases[-1], role, folder / f"{role}.nii.gz")
            client.wait(client.plan(cases[-1], engine="learned", wait_s=300)["id"])
    return cases


def phase(
    service: Server, cases: Sequence[str], log: Path, *, users: int, rate: float | None, seconds: int
) -> list[dict[str, Any]]:
    """Runs locust for a while; its answers in the order they were asked for."""
    environment = os.environ | {
        "HEPALIGN_TOKEN": str(service.token),
        "LOAD_CASES": ",".join(cases),
        "LOAD_RATE": "" if rate is None else str(rate),
        "LOAD_USERS": str(users),
        "LOAD_LOG": str(log),
    }
    command = [sys.executable, "-m", "locust", "-f", str(USERS_FILE), "--headless", "--host", service.url]
    command += ["-u", str(users), "-r", str(users), "-t", f"{seconds}s", "--stop-timeout", "90", "--only-summary"]
    subprocess.run(command, env=environment, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return sorted(lines, key=lambda line: float(line["began"]))


def overhead(done: Sequence[dict[str, Any]], *, large: bool) -> None:
    """What an answer takes beyond its computing, the upload apart."""
    beyond = [line["seconds"] - line["compute_s"] for line in done]
    if large:
        worst = percentile([more / line["compute_s"] for more, line in zip(beyond, done, strict=True)], 95)
        single("overhead beyond computing, p95", [worst], "of the computing", at_most=OVERHEAD_SHARE)
    else:
        single("overhead beyond computing, p95", [1000 * percentile(beyond, 95)], "ms", at_most=OVERHEAD_MS)
    single("computing of one guide", [line["compute_s"] for line in done], "s")


def crowded(lines: Sequence[dict[str, Any]], seconds: int, capacity: float) -> None:
    """What was answered at four times the capacity."""
    times = len(lines) / (lines[-1]["began"] - lines[0]["began"]) / capacity
    single("requests over the capacity", [times], "x", at_least=4)
    statuses = Counter(line["status"] for line in lines)
    refused = [line for line in lines if line["status"] in (429, 503)]
    others = {str(status): n for status, n in statuses.items() if status not in (200, 202, 429, 503)}
    silent = sum(1 for line in refused if not line["retry_after"])
    facts = {"answers": {str(status): n for status, n in sorted(statuses.items())}, "seconds": seconds}
    single("answers that are neither 2xx nor 429 or 503", [sum(others.values())], "", at_most=0.5, **facts)
    single("refusals without Retry-After", [silent], "", at_most=0.5)
    slowest = percentile([1000 * line["seconds"] for line in refused], 95) if refused else 0.0
    single("time of a refusal, p95", [slowest], "ms", at_most=REJECTION_MS, refusals=len(refused))


def percentile(values: Sequence[float], percent: int) -> float:
    """The value that so many percent do not pass."""
    return statistics.quantiles(values, n=100)[percent - 1] if len(values) > 1 else values[0]


class Memory:
    """What the replicas hold of their own, every five seconds."""

    def __enter__(self) -> Memory:
        self._samples: list[float] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(5):
            total = 0
            for process in psutil.Process().children(recursive=True):
                try:
                    if "ServeReplica" in " ".join(process.cmdline()):
                        total += process.memory_full_info().uss
                except psutil.Error:
                    continue
            self._samples.append(total / 2**20)

    def tell(self) -> None:
        """Growth from the second eighth (the caches are full by then) to the last."""
        part = max(1, len(self._samples) // 8)
        before, after = (statistics.median(some) for some in (self._samples[part : 2 * part], self._samples[-part:]))
        single("growth of memory", [(after - before) / before], "of it", at_most=GROWTH_SHARE, mib=round(after))


if __name__ == "__main__":
    started = time.monotonic()
    main()
    print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)
